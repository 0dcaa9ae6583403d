//! The configuration as its users see it.

use std::{ffi::OsString, fs, path::PathBuf};

use super::{size, *};

/// The file that is shipped.
const SHIPPED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml"));

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn flags(pairs: &[&str]) -> Sources {
    Sources { flags: pairs.iter().map(|pair| Setting::assignment(pair).unwrap()).collect(), ..Sources::default() }
}

fn with_file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    let (_directory, path) = with_file(text);
    Config::load(&Sources { file: Some(path), ..Sources::default() }).map(|(config, _)| config)
}

fn refusal(sources: &Sources) -> String {
    Config::load(sources).expect_err("must be refused").to_string()
}

#[test]
fn the_shipped_file_is_the_defaults() {
    assert_eq!(load_file(SHIPPED).unwrap(), Config::default());
}

#[test]
fn the_shipped_file_has_every_key_once_in_order_with_unit_range_and_default_above_it() {
    let (mut section, mut comment) = (String::new(), String::new());
    let mut keys = KEYS.iter().zip(Config::default().effective().unwrap());
    for line in SHIPPED.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some(text) = line.strip_prefix('#') {
            comment += text;
        } else if let Some((name, _)) = line.split_once(" = ") {
            let (key, (path, default)) = keys.next().expect("more keys than there are");
            assert_eq!(format!("{section}.{name}"), path);
            let wanted = format!("({}; default {default})", key.kind);
            assert!(comment.ends_with(&wanted), "the comment of {path} must end with {wanted:?}, but is {comment:?}");
            comment.clear();
        } else {
            assert_eq!(line, "");
            comment.clear();
        }
    }
    assert!(keys.next().is_none(), "the shipped file lacks a key");
}

#[test]
fn keys_and_fields_of_the_tree_are_the_same() {
    let table = Config::default().table().unwrap();
    let mut fields: Vec<String> = table
        .iter()
        .flat_map(|(section, values)| values.as_table().unwrap().keys().map(move |name| format!("{section}.{name}")))
        .collect();
    let mut keys: Vec<String> = KEYS.iter().map(|key| key.path().to_owned()).collect();
    fields.sort();
    keys.sort();
    assert_eq!(fields, keys);
}

#[test]
fn the_defaults_are_valid() {
    Config::default().validate(&Origins::default()).unwrap();
}

#[test]
fn each_source_covers_the_one_before() {
    let (_directory, path) = with_file("[exec]\nqueue_max = 1\nexecutors = 1\nstack_bytes = '128 KiB'");
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment(&[("CODECACHED_EXEC_QUEUE_MAX", "2"), ("CODECACHED_EXEC_EXECUTORS", "2")]),
        flags: vec![Setting::text("--queue", "exec.queue_max", "3")],
    };
    let (config, origins) = Config::load(&sources).unwrap();
    assert_eq!((config.exec.queue_max, config.exec.executors, config.exec.stack_bytes), (3, 2, 128 << 10));
    assert_eq!(*origins.of("exec.queue_max"), Origin::Flag("--queue".into()));
    assert_eq!(*origins.of("exec.executors"), Origin::Environment("CODECACHED_EXEC_EXECUTORS".into()));
    assert_eq!(*origins.of("exec.stack_bytes"), Origin::File(path));
    assert_eq!(*origins.of("exec.stack_guard_bytes"), Origin::Default);
}

#[test]
fn the_last_flag_wins() {
    let (config, _) = Config::load(&flags(&["exec.queue_max=3", "exec.queue_max=4"])).unwrap();
    assert_eq!(config.exec.queue_max, 4);
}

#[test]
fn unknown_keys_are_refused_wherever_they_stand() {
    for text in ["[cache]\nbudget = 1", "[caches]\nbudget_bytes = 1", "budget_bytes = 1", "[cache.more]\nx = 1"] {
        let error = load_file(text).unwrap_err();
        assert!(matches!(error, ConfigError::UnknownKey { .. }), "{text}: {error}");
    }
    for name in ["CODECACHED_CACHE_BUDGET", "CODECACHED_BUDGET_BYTES", "CODECACHED_", "CODECACHED_SERVERS"] {
        let sources = Sources { environment: environment(&[(name, "1")]), ..Sources::default() };
        assert!(refusal(&sources).contains(name));
    }
    for key in ["cache.budget", "budget_bytes", "cache.", ".", ""] {
        assert!(refusal(&flags(&[&format!("{key}=1")])).contains("there is no key"), "{key}");
    }
}

#[test]
fn variables_of_others_are_left_alone() {
    let sources = Sources {
        environment: environment(&[
            ("CODECACHED_SERVER", "unix:/x"),
            ("CODECACHED_CONFIG", "/x"),
            ("CODECACHED_SERVICE_HOST", "10.0.0.1"),
            ("CODECACHED_CI_SKIPPED", "skipped"),
            ("CODECACHED_REQUIRE_RUNC", "1"),
            ("CODECACHED_TEST_SCALE", "10"),
            ("CODECACHED_PORT_9464_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ]),
        ..Sources::default()
    };
    assert_eq!(Config::load(&sources).unwrap().0, Config::default());
}

#[test]
fn a_variable_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let value = OsString::from_vec(b"unix:/\xff".to_vec());
    let sources = Sources { environment: vec![("CODECACHED_SERVER_LISTEN".into(), value)], ..Sources::default() };
    assert!(refusal(&sources).contains("UTF-8"));
}

#[test]
fn every_number_is_held_to_its_range_and_named_with_key_value_range_and_origin() {
    for key in KEYS {
        let Kind::Number { min, max, .. } = key.kind else { continue };
        let outside = [min.checked_sub(1).map_or("-1".to_owned(), |below| below.to_string()), (max + 1).to_string()];
        for value in outside {
            let text = refusal(&flags(&[&format!("{}={value}", key.path())]));
            for part in [key.path(), &value, &key.kind.to_string(), "flag --set"] {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        }
    }
}

#[test]
fn both_ends_of_every_range_are_taken() {
    for key in KEYS {
        let Kind::Number { min, max, .. } = key.kind else { continue };
        for value in [min, max] {
            let result = Config::load(&flags(&[&format!("{}={value}", key.path())]));
            let fits = matches!(result, Ok(_) | Err(ConfigError::Order { .. }));
            assert!(fits, "{} = {value}: {:?}", key.path(), result.err());
        }
    }
}

#[test]
fn a_value_of_the_wrong_form_is_refused() {
    for text in [
        "[exec]\nqueue_max = 'many'",
        "[exec]\nqueue_max = 1.5",
        "[exec]\nqueue_max = [1]",
        "[exec]\nqueue_max = '1 KiB'",
        "[cache]\nbudget_bytes = '1 MB'",
        "[server]\nmetrics = 9464",
        "[server]\nmetrics = 'on'",
        "[server]\nlisten = []",
        "[server]\nlisten = [1]",
        "[server]\nlisten = ['unix:/a', 'unix:/a']",
        "[log]\nformat = 'xml'",
        "[log]\nformat = ''",
        "[arena]\ngranule_bytes = 48",
        "[arena]\ngranule_bytes = 8192",
        "[arena]\nshards = 65",
        "[arena]\nwrite_window = 'never'",
        "[arena]\nwrite_window = true",
        "[arena]\ndirectory = 'here'",
        "[arena]\ndirectory = false",
        "[arena]\nallow_mprotect = 1",
        "[arena]\nallow_mprotect = 'yes'",
        "[arena]\nhuge_pages = 'always'",
        "[log]\nlevel = ''",
    ] {
        let error = load_file(text).unwrap_err();
        assert!(matches!(error, ConfigError::Value { origin: Origin::File(_), .. }), "{text}: {error}");
    }
}

#[test]
fn a_file_that_is_absent_or_no_toml_or_too_large_is_refused_with_its_path() {
    let absent = Sources { file: Some("/nowhere/config.toml".into()), ..Sources::default() };
    assert!(refusal(&absent).contains("/nowhere/config.toml"));
    assert!(matches!(load_file("[cache").unwrap_err(), ConfigError::Syntax { .. }));
    assert!(matches!(load_file(&"#".repeat((1 << 20) + 1)).unwrap_err(), ConfigError::FileTooLarge { .. }));
}

#[test]
fn a_bound_below_what_it_bounds_is_refused_with_both_keys() {
    for (pair, other) in [
        ("cache.budget_bytes=2 GiB", "arena.reserve_max_bytes"),
        ("arena.reserve_max_bytes=2 MiB", "cache.budget_bytes"),
        ("exec.cpu_limit_max_ms=10", "exec.cpu_limit_default_ms"),
    ] {
        let text = refusal(&flags(&[pair]));
        assert!(text.contains(other) && text.contains("flag --set") && text.contains("the defaults"), "{text}");
    }
    let mut config = Config::default();
    config.exec.cpu_limit_max_ms = 1;
    assert!(config.validate(&Origins::default()).is_err());
}

#[test]
fn a_config_made_by_a_program_is_held_to_the_same_ranges() {
    let mut config = Config::default();
    config.exec.queue_max = 0;
    assert!(config.validate(&Origins::default()).unwrap_err().to_string().contains("exec.queue_max = 0"));
    config = Config::default();
    config.cache.budget_bytes = u64::MAX;
    assert!(config.validate(&Origins::default()).is_err());
    config = Config::default();
    config.server.listen.clear();
    assert!(config.validate(&Origins::default()).unwrap_err().to_string().contains("server.listen"));
}

#[test]
fn sizes_are_read_with_binary_units_and_written_so_that_they_read_the_same() {
    for (text, bytes) in [("0", 0), ("1", 1), ("3 B", 3), ("2KiB", 2048), (" 256 MiB ", 256 << 20), ("1 TiB", 1 << 40)]
    {
        assert_eq!(size::parse(text), Some(bytes), "{text}");
    }
    for text in ["", "MiB", "1 MB", "1 mib", "-1", "1.5 MiB", "1 2", "99999999999999999999", "99999999 TiB"] {
        assert_eq!(size::parse(text), None, "{text}");
    }
    for bytes in [0, 1, 1023, 1024, 1536, 4 << 20, 5 << 30, (1 << 40) + 1, u64::MAX] {
        assert_eq!(size::parse(&size::format(bytes)), Some(bytes));
    }
    assert_eq!(size::format(1536), "1536 B");
}

#[test]
fn listeners_are_read_and_written_alike() {
    for text in ["unix:/run/x.sock", "unix:x", "tcp:127.0.0.1:0", "tcp:127.8.8.8:80", "tcp:[::1]:443"] {
        assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
    }
}

#[test]
fn an_address_beyond_loopback_is_refused_with_the_reason() {
    for text in ["tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:192.168.0.1:1", "tcp:[::ffff:127.0.0.1]:1"] {
        let error = text.parse::<Listen>().unwrap_err();
        assert!(matches!(error, ListenError::NotLoopback(_)) && error.to_string().contains("TLS"), "{text}: {error}");
    }
}

#[test]
fn what_is_no_listener_is_refused() {
    assert!(matches!("/run/x".parse::<Listen>(), Err(ListenError::Form(_))));
    assert!(matches!("http:x".parse::<Listen>(), Err(ListenError::Form(_))));
    assert!(matches!("unix:".parse::<Listen>(), Err(ListenError::Path(_))));
    assert!(matches!("tcp:localhost:1".parse::<Listen>(), Err(ListenError::Address(_))));
    assert!(matches!("tcp:127.0.0.1".parse::<Listen>(), Err(ListenError::Address(_))));
    let long = format!("unix:/{}", "x".repeat(107));
    assert_eq!(long.parse::<Listen>(), Err(ListenError::PathTooLong { bytes: 108 }));
    assert!(format!("unix:/{}", "x".repeat(106)).parse::<Listen>().is_ok());
}

#[test]
fn flags_and_the_environment_give_lists_with_commas_or_one_by_one() {
    let (config, _) = Config::load(&flags(&["server.listen=unix:/a,tcp:127.0.0.1:0"])).unwrap();
    assert_eq!(config.server.listen.len(), 2);
    let listed = Setting::list("--listen", "server.listen", &["unix:/a,b".to_owned()]);
    let (config, _) = Config::load(&Sources { flags: vec![listed], ..Sources::default() }).unwrap();
    assert_eq!(config.server.listen, [Listen::Unix("/a,b".into())]);
}

#[test]
fn words_switches_and_directories_are_taken_from_every_source() {
    let given = [
        "arena.granule_bytes=4 KiB",
        "arena.write_window=on-demand",
        "arena.directory=/dev/shm",
        "arena.allow_mprotect=true",
        "arena.huge_pages=hugetlb",
    ];
    let (config, _) = Config::load(&flags(&given)).unwrap();
    let in_file = load_file(
        "[arena]\ngranule_bytes = 4096\nwrite_window = 'on-demand'\ndirectory = '/dev/shm'\nallow_mprotect = true\n\
         huge_pages = 'hugetlb'",
    );
    assert_eq!(in_file.unwrap(), config);
    let arena = &config.arena;
    assert_eq!((arena.granule_bytes, arena.write_window), (4096, WriteWindow::OnDemand));
    assert_eq!((arena.directory.to_str(), arena.huge_pages), (Some("/dev/shm"), HugePages::Hugetlb));
    assert!(arena.allow_mprotect);
    for (key, text) in
        [("arena.granule_bytes", "4 KiB"), ("arena.directory", "/dev/shm"), ("arena.allow_mprotect", "true")]
    {
        assert!(config.effective().unwrap().contains(&(key, text.to_owned())), "{key}");
    }
    assert!(Config::default().effective().unwrap().contains(&("arena.directory", "empty".to_owned())));
}

#[test]
fn metrics_may_be_off() {
    let (config, _) = Config::load(&flags(&["server.metrics=off"])).unwrap();
    assert_eq!(config.server.metrics, None);
}

#[test]
fn an_assignment_without_an_equals_sign_is_refused() {
    assert!(Setting::assignment("cache.budget_bytes").is_err());
}

#[test]
fn effective_values_are_written_for_people() {
    let effective = Config::default().effective().unwrap();
    assert!(effective.contains(&("cache.budget_bytes", "256 MiB".to_owned())));
    assert!(effective.contains(&("log.format", "text".to_owned())));
    assert!(effective.contains(&("server.listen", "unix:/run/codecached/codecached.sock".to_owned())));
    assert_eq!(effective.len(), KEYS.len());
}
