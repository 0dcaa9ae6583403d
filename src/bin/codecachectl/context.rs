//! What every command works with, and what it leaves behind.

use std::time::Duration;

use bytes::Bytes;
use codecached::{
    client::{Client, ClientError, DEFAULT_ADDRESS},
    proto::Limits,
};
use serde_json::Value;

use crate::{
    args::Common,
    failure::{Exit, Failure},
    units,
};

/// A connection, and how to speak.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) timeout: Duration,
    pub(crate) json: bool,
}

/// What a command prints, and how it ends.
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) exit: Exit,
}

impl Context {
    /// Connects to the server that was asked for, by option, else by environment, else by default.
    pub(crate) async fn connect(common: Common) -> Result<Self, Failure> {
        let address = common.server.or_else(from_environment).unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        let connecting = tokio::time::timeout(common.timeout, Client::connect(&address));
        let connected = connecting.await.unwrap_or_else(|_| {
            let cause = format!("no connection within {:?}", common.timeout);
            Err(ClientError::Transport {
                address: address.clone(),
                cause,
                advice: "is the daemon stopped or overloaded?",
            })
        });
        let client = connected.map_err(|error| Failure::client("connect", error))?.with_timeout(common.timeout);
        Ok(Self { client, namespace: common.namespace, timeout: common.timeout, json: common.json })
    }

    /// The bounds of the daemon.
    pub(crate) async fn limits(&self) -> Result<Limits, Failure> {
        let answer = self.client.capabilities().await;
        let answer = answer.map_err(|error| Failure::client("ask for the limits of the daemon", error))?;
        answer.limits.ok_or_else(|| Failure::answer("the daemon did not tell its limits"))
    }

    /// A report of a command that went well; only the form that was asked for is made.
    pub(crate) fn report(&self, human: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Report {
        let text = if self.json { format!("{:#}\n", json()) } else { human() };
        Report { text, exit: Exit::Done }
    }
}

/// The bytes of a key from the command line: text, or `hex:` and digits.
pub(crate) fn key(text: &str) -> Result<Bytes, Failure> {
    match text.strip_prefix("hex:") {
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some(digits) => {
            units::parse_hex(digits).map(Bytes::from).map_err(|why| Failure::misuse(format!("the key {text:?}: {why}")))
        }
    }
}

fn from_environment() -> Option<String> {
    std::env::var("CODECACHED_SERVER").ok().filter(|address| !address.is_empty())
}
