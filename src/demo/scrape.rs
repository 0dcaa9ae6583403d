//! The daemon's own numbers, before and after.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{DemoError, check};

const TIMEOUT: Duration = Duration::from_secs(5);

/// More than all metrics of a daemon together.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// Samples by name and labels.
pub(super) type Samples = BTreeMap<String, f64>;

/// What `/metrics` says now.
pub(super) fn scrape(address: SocketAddr) -> Result<Samples, DemoError> {
    let answer = get(address).map_err(DemoError::system(format!("read http://{address}/metrics")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    check(head.starts_with("HTTP/1.1 200"), || format!("/metrics answered {:?}", head.lines().next().unwrap_or("")))?;
    Ok(parse(body))
}

/// The samples of the daemon that differ, with both values; histograms left out, as too many to read.
pub(super) fn moved(before: &Samples, after: &Samples) -> Vec<(String, f64, f64)> {
    let samples = after.iter().filter(|(name, _)| {
        let bare = name.split('{').next().unwrap_or_default();
        bare.starts_with("codecache_") && !["_bucket", "_sum", "_count"].iter().any(|end| bare.ends_with(end))
    });
    let pairs = samples.map(|(name, &value)| (name.clone(), before.get(name).copied().unwrap_or(0.0), value));
    pairs.filter(|(_, before, after)| before != after).collect()
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

fn parse(body: &str) -> Samples {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.into(), value.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_is_found() {
        let before = parse("# HELP codecache_a_total x\ncodecache_a_total{r=\"x y\"} 1\ncodecache_b 2\nprocess_c 1\n");
        let after = parse(
            "codecache_a_total{r=\"x y\"} 3\ncodecache_b 2\nprocess_c 9\ncodecache_d 0.5\ncodecache_e_bucket{le=\"1\"} 4\n",
        );
        let expected = [("codecache_a_total{r=\"x y\"}".to_owned(), 1.0, 3.0), ("codecache_d".to_owned(), 0.0, 0.5)];
        assert_eq!(moved(&before, &after), expected);
    }
}
