//! A Prometheus that scrapes one daemon each second by the shipped configuration.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::PATIENCE;

/// Killed on drop.
pub struct Prometheus {
    child: Child,
    address: String,
    directory: TempDir,
}

impl Prometheus {
    /// With the rules of `shipped`, and its prometheus.yml but for the interval and the target.
    pub fn start(shipped: &Path, target: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["recording-rules.yml", "alert-rules.yml"] {
            fs::copy(shipped.join(name), directory.path().join(name)).unwrap();
        }
        let config = fs::read_to_string(shipped.join("prometheus.yml")).unwrap();
        assert!(config.contains("127.0.0.1:9464") && config.contains(" 15s\n"), "{config}");
        let config = config.replace("127.0.0.1:9464", target).replace(" 15s\n", " 1s\n");
        fs::write(directory.path().join("prometheus.yml"), config).unwrap();
        // It cannot be asked for a port that the system chose: one that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", directory.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, directory }
    }

    /// The vector that a query answers, as values.
    pub fn query(&self, query: &str) -> Result<Vec<f64>, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let text = http_get(&self.address, &format!("/api/v1/query?query={encoded}"))?;
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let results = json["data"]["result"].as_array().ok_or_else(|| text.clone())?;
        let value = |it: &Value| it["value"][1].as_str().and_then(|text| text.parse().ok());
        Ok(results.iter().filter_map(value).collect())
    }

    /// The one value of a query.
    pub fn value(&self, query: &str) -> Option<f64> {
        self.query(query).ok().and_then(|values| values.first().copied())
    }

    /// Waits until a query answers what is wanted. It may only come with the next scrape, and a rule with the one after.
    pub fn until(&self, query: &str, wanted: impl Fn(f64) -> bool) {
        let limit = Instant::now() + PATIENCE;
        loop {
            let value = self.value(query);
            if value.is_some_and(&wanted) {
                return;
            }
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < limit, "{query} is {value:?}\n{}", log());
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The body that a server answers with, if it is well.
pub fn http_get(address: &str, path: &str) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.lines().next().is_some_and(|line| line.contains(" 200")) { Ok(body.to_owned()) } else { Err(answer) }
}
