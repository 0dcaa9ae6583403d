//! Numbers and bytes as people write and read them.

use std::{fmt::Write, time::Duration};

/// Bytes in binary units, such as `512 B` or `1.5 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// A short time, such as `950 ns` or `12.3 us`.
pub(crate) fn nanoseconds(count: u64) -> String {
    let count_ns = count as f64;
    match count {
        0..1_000 => format!("{count} ns"),
        1_000..1_000_000 => format!("{:.1} us", count_ns / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", count_ns / 1e6),
        _ => format!("{:.2} s", count_ns / 1e9),
    }
}

/// A long time by its two largest units, such as `3 m 20 s`.
pub(crate) fn milliseconds(count: u64) -> String {
    let seconds = count / 1000;
    match seconds {
        0..60 => format!("{:.1} s", count as f64 / 1e3),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A key as it may be typed: text where it is printable, else `hex:` and digits.
pub(crate) fn key(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.starts_with("hex:") && !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("hex:{}", hex(key)),
    }
}

/// Two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of pairs of hexadecimal digits.
pub(crate) fn parse_hex(digits: &str) -> Result<Vec<u8>, String> {
    let nibbles: Option<Vec<u8>> = digits.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    match nibbles {
        Some(nibbles) if nibbles.len() % 2 == 0 => Ok(nibbles.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()),
        _ => Err("must be pairs of hexadecimal digits".into()),
    }
}

/// A number without sign, decimal or with 0x.
pub(crate) fn parse_integer(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a whole number that fits 64 bits"))
}

/// A time with its unit, from 1 microsecond to a day.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const DAY_SECONDS: f64 = 86_400.0;
    let unit_at = text.find(|digit: char| !digit.is_ascii_digit() && digit != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("must be a number and one of us, ms, s, m, h, such as 100ms".into()),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("{number:?} is not a number"))? * scale;
    // A hair below a microsecond, as 1us is not exact in binary.
    if (0.99e-6..=DAY_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be from 1us to 24h".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_times_are_readable() {
        let sizes = [0, 1023, 1024, 1536, 4 << 20, (1 << 20) - 1, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "4 MiB", "1 MiB", "16384 PiB"]);
        assert_eq!([999, 12_345, 2_500_000, 1 << 31].map(nanoseconds), ["999 ns", "12.3 us", "2.5 ms", "2.15 s"]);
        let long = [1500, 200_000, 7_380_000, 90_000_000].map(milliseconds);
        assert_eq!(long, ["1.5 s", "3 m 20 s", "2 h 3 m", "1 d 1 h"]);
    }

    #[test]
    fn keys_are_text_or_else_hex() {
        assert_eq!(key("zlib/crc32".as_bytes()), "zlib/crc32");
        assert_eq!(key(&[0, 0xff]), "hex:00ff");
        assert_eq!(key(b"a\nb"), "hex:610a62");
        assert_eq!(key(b"hex:zz"), "hex:6865783a7a7a");
    }

    #[test]
    fn hex_is_read_in_pairs_only() {
        assert_eq!(parse_hex("00fF").unwrap(), [0, 255]);
        assert!(parse_hex("0").is_err() && parse_hex("0g").is_err() && parse_hex("+1").is_err());
    }

    #[test]
    fn times_need_a_unit_and_a_sensible_size() {
        assert_eq!(parse_duration("100ms").unwrap(), Duration::from_millis(100));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("1us").unwrap(), Duration::from_micros(1));
        for text in ["", "10", "s", "-1s", "0s", "1d", "25h", "1.2.3s", "NaNs", "1e9s"] {
            assert!(parse_duration(text).is_err(), "{text:?} was taken");
        }
    }
}
