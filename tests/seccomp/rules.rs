//! rules.toml as values, and the profiles made of it.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Deserialize;
use serde_json::{Value, json};

/// `arch` of a rule, and as Docker names it.
const ARCHES: &[(&str, &str, &str)] =
    &[("x86_64", "amd64", "SCMP_ARCH_X86_64"), ("aarch64", "arm64", "SCMP_ARCH_AARCH64")];
/// EPERM.
const REFUSED: u32 = 1;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub variants: BTreeMap<String, Variant>,
    pub rule: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub about: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub calls: Vec<String>,
    pub reason: String,
    pub stays: Option<String>,
    pub stays_in: Option<Vec<String>>,
    #[serde(default)]
    pub when: Vec<Condition>,
    pub errno: Option<u32>,
    pub arch: Option<String>,
    pub variants: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub arg: u32,
    pub mask: u64,
    pub is: u64,
}

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For `docker run` and podman: with comments, and with rules for one architecture.
    Docker,
    /// The runtime's own, which Kubernetes hands on: names that an architecture has not are passed over there.
    Oci,
}

impl Form {
    pub const ALL: [Self; 2] = [Self::Docker, Self::Oci];

    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Oci => "oci",
        }
    }
}

impl Rules {
    pub fn read(text: &str) -> Self {
        toml::from_str(text).unwrap_or_else(|error| panic!("rules.toml: {error}"))
    }

    /// Those of a variant.
    pub fn of(&self, variant: &str) -> Vec<&Rule> {
        let applies = |rule: &&Rule| rule.variants.as_ref().is_none_or(|them| them.iter().any(|it| it == variant));
        self.rule.iter().filter(applies).collect()
    }
}

impl Rule {
    /// What tells it from others, for names of tests.
    pub fn name(&self) -> String {
        let conditions: String = self.when.iter().map(|it| format!("-{}is{:#x}", it.arg, it.is)).collect();
        format!("{}{conditions}", self.calls.join("-"))
    }

    /// Whether a daemon of this variant fails without it, on any machine.
    pub fn is_missed(&self, variant: &str) -> bool {
        let stays = self.stays_in.as_ref().is_none_or(|them| them.iter().any(|it| it == variant));
        self.stays.is_none() || !stays
    }

    fn profile(&self, form: Form) -> Value {
        let action = if self.errno.is_some() { "SCMP_ACT_ERRNO" } else { "SCMP_ACT_ALLOW" };
        let mut value = json!({ "names": self.calls, "action": action });
        if let Some(errno) = self.errno {
            value["errnoRet"] = errno.into();
        }
        if !self.when.is_empty() {
            let one = |it: &Condition| json!({ "index": it.arg, "value": it.mask, "valueTwo": it.is, "op": "SCMP_CMP_MASKED_EQ" });
            value["args"] = self.when.iter().map(one).collect();
        }
        if form == Form::Docker {
            value["comment"] = self.reason.as_str().into();
            if let Some(arch) = &self.arch {
                let docker = ARCHES.iter().find(|(name, ..)| name == arch).unwrap().1;
                value["includes"] = json!({ "arches": [docker] });
            }
        }
        value
    }
}

/// A profile. The audit form lets through what it does not know, and the kernel logs it.
pub fn profile(rules: &[&Rule], form: Form, audit: bool) -> Value {
    let rules: Vec<Value> = rules.iter().map(|rule| rule.profile(form)).collect();
    let mut profile = json!({ "defaultAction": "SCMP_ACT_LOG", "syscalls": rules });
    if !audit {
        profile["defaultAction"] = "SCMP_ACT_ERRNO".into();
        profile["defaultErrnoRet"] = REFUSED.into();
    }
    match form {
        Form::Docker => {
            let one = |(.., name): &(&str, &str, &str)| json!({ "architecture": name, "subArchitectures": [] });
            profile["archMap"] = ARCHES.iter().map(one).collect();
        }
        Form::Oci => profile["architectures"] = ARCHES.iter().map(|(.., name)| *name).collect(),
    }
    profile
}

/// As it is kept: a line for each rule, so that a change of one can be seen.
pub fn text(profile: &Value) -> String {
    let mut text = "{\n".to_owned();
    for (key, value) in profile.as_object().unwrap().iter().filter(|(key, _)| *key != "syscalls") {
        writeln!(text, "  \"{key}\": {value},").unwrap();
    }
    let rules: Vec<String> = profile["syscalls"].as_array().unwrap().iter().map(|rule| format!("    {rule}")).collect();
    writeln!(text, "  \"syscalls\": [\n{}\n  ]\n}}", rules.join(",\n")).unwrap();
    text
}
