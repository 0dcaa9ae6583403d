//! Where values come from: defaults < file < environment < flags.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{Config, ConfigError, KEYS, Key, keys};

/// Bytes of a configuration file: the shipped one has a hundredth of it.
const FILE_MAX_BYTES: u64 = 1 << 20;

const PREFIX: &str = "CODECACHED_";

/// Variables with the prefix that are no keys: of the client, of this program's own flags, and of the build.
const OTHER_VARIABLES: [&str; 3] = ["CODECACHED_SERVER", "CODECACHED_CONFIG", "CODECACHED_REVISION"];

/// What others' variables begin with: Kubernetes puts some into each container beside a Service named "codecached", and
/// the tests have theirs. No section has such a name.
const OTHERS: [&str; 6] = [
    "CODECACHED_SERVICE_",
    "CODECACHED_PORT",
    "CODECACHED_CI_",
    "CODECACHED_REQUIRE_",
    "CODECACHED_SOAK_",
    "CODECACHED_TEST_",
];

/// Where to look for values.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The environment of the process; only what begins with `CODECACHED_` is looked at.
    pub environment: Vec<(OsString, OsString)>,
    /// From the command line, in its order: the last one wins.
    pub flags: Vec<Setting>,
}

/// One value from the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    flag: String,
    key: String,
    value: Value,
}

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

/// Who gave which value.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<&'static str, Origin>);

/// The sources, one over the other.
pub(super) struct Layers {
    pub(super) table: Table,
    pub(super) origins: Origins,
}

impl Setting {
    /// A value as text, for the key `section.name`.
    pub fn text(flag: &str, key: &str, value: impl Into<String>) -> Self {
        Self { flag: flag.to_owned(), key: key.to_owned(), value: Value::String(value.into()) }
    }

    /// A value that is a list, for the key `section.name`.
    pub fn list(flag: &str, key: &str, values: &[String]) -> Self {
        Self { flag: flag.to_owned(), key: key.to_owned(), value: values.to_vec().into() }
    }

    /// From `section.key=value`.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn assignment(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("expected section.key=value")?;
        Ok(Self::text("--set", key.trim(), value.trim()))
    }
}

impl Origins {
    /// Who gave the value of `section.name`.
    pub fn of(&self, key: &str) -> &Origin {
        self.0.get(key).unwrap_or(&Origin::Default)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "the defaults"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

impl Layers {
    /// Lays the sources over the defaults. A value is checked even if a later one covers it.
    pub(super) fn merge(sources: &Sources) -> Result<Self, ConfigError> {
        let mut layers = Self { table: Config::default().table()?, origins: Origins::default() };
        if let Some(path) = &sources.file {
            layers.lay_file(path)?;
        }
        layers.lay_environment(&sources.environment)?;
        for Setting { flag, key, value } in &sources.flags {
            layers.lay(key, value, Origin::Flag(flag.clone()))?;
        }
        Ok(layers)
    }

    fn lay_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = read_file(path)?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let origin = Origin::File(path.to_owned());
        for (section, values) in &table {
            let known = KEYS.iter().any(|key| key.section() == section);
            let Some(values) = values.as_table().filter(|_| known) else {
                return Err(ConfigError::UnknownKey { key: section.clone(), origin });
            };
            for (name, value) in values {
                self.lay(&format!("{section}.{name}"), value, origin.clone())?;
            }
        }
        Ok(())
    }

    fn lay_environment(&mut self, environment: &[(OsString, OsString)]) -> Result<(), ConfigError> {
        for (name, value) in environment {
            let name = name.to_string_lossy();
            let foreign = OTHERS.iter().any(|others| name.starts_with(others));
            if !name.starts_with(PREFIX) || foreign || OTHER_VARIABLES.contains(&&*name) {
                continue;
            }
            let origin = Origin::Environment(name.clone().into_owned());
            let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
                return Err(ConfigError::UnknownKey { key: name.into_owned(), origin });
            };
            let Some(text) = value.to_str() else {
                let value = value.to_string_lossy().into_owned();
                return Err(ConfigError::Value { key: key.path(), value, expected: "UTF-8".to_owned(), origin });
            };
            self.lay_key(key, &Value::from(text), origin)?;
        }
        Ok(())
    }

    fn lay(&mut self, path: &str, value: &Value, origin: Origin) -> Result<(), ConfigError> {
        match keys::by_path(path) {
            Some(key) => self.lay_key(key, value, origin),
            None => Err(ConfigError::UnknownKey { key: path.to_owned(), origin }),
        }
    }

    fn lay_key(&mut self, key: &'static Key, value: &Value, origin: Origin) -> Result<(), ConfigError> {
        let value = key.read(value, &origin)?;
        if let Some(section) = self.table.get_mut(key.section()).and_then(Value::as_table_mut) {
            section.insert(key.name().to_owned(), value);
        }
        self.origins.0.insert(key.path(), origin);
        Ok(())
    }
}

/// The text of a file, up to [`FILE_MAX_BYTES`] whatever the file is.
fn read_file(path: &Path) -> Result<String, ConfigError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(ConfigError::FileTooLarge { path: path.to_owned(), max_bytes: FILE_MAX_BYTES });
    }
    Ok(text)
}
