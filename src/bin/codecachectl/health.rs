//! `health`: whether requests are taken, for whoever keeps the daemon up.

use serde_json::json;

use crate::{
    args::Health,
    context::{Context, Report},
    failure::{Exit, Failure},
};

/// Asks by grpc.health.v1. A daemon that does not serve is as little use as one that cannot be reached.
pub(crate) async fn run(context: &Context, asked: Health) -> Result<Report, Failure> {
    let name = if asked.service.is_empty() { "the daemon" } else { &asked.service };
    let serving = context.client.is_serving(&asked.service).await;
    let serving = serving.map_err(|error| Failure::client(&format!("ask for the health of {name}"), error))?;
    let word = if serving { "serving" } else { "not serving" };
    let report = context.report(|| format!("{word}\n"), || json!({ "serving": serving }));
    Ok(Report { exit: if serving { Exit::Done } else { Exit::Unreachable }, ..report })
}
