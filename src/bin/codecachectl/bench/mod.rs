//! `bench`: a load generator, to be compared with others of its kind.

mod load;
mod many;
mod object;
mod report;
mod work;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use codecached::client::Client;

use crate::{
    args::Bench,
    context::{Context, Report},
    failure::{Exit, Failure},
};
use load::Load;
use work::{Plan, Worker};

/// Makes the entries, puts the load on, takes the entries out again, and tells what was measured.
pub(crate) async fn run(context: &Context, asked: Bench) -> Result<Report, Failure> {
    let clients = connect(context, asked.connections).await?;
    let plan = Arc::new(Plan::install(&clients, &context.namespace, &asked, run_number()).await?);
    let workers = (0..asked.in_flight).map(|slot| {
        let client = &clients[usize::from(slot % asked.connections)];
        Worker::new(Arc::clone(&plan), client, slot)
    });
    let load = Load {
        workers: workers.collect(),
        warmup: Duration::from_secs_f64(asked.warmup),
        measured: Duration::from_secs_f64(asked.seconds),
    };
    let result = load.run().await;
    let transport = context.client.address().transport();
    let text = if asked.plain {
        report::plain(&asked, transport, &result)
    } else if context.json {
        format!("{:#}\n", report::to_json(&asked, transport, &result))
    } else {
        report::human(&asked, transport, &result)
    };
    let exit = if result.calls() > 0 && result.errors.is_empty() { Exit::Done } else { Exit::Refused };
    Ok(Report { text, exit })
}

async fn connect(context: &Context, connections: u16) -> Result<Vec<Client>, Failure> {
    let address = context.client.address().to_string();
    let mut clients = Vec::with_capacity(connections.into());
    for _ in 0..connections {
        let client = Client::connect(&address).await.map_err(|error| Failure::client("connect", error))?;
        clients.push(client.with_timeout(context.timeout));
    }
    Ok(clients)
}

/// Keeps the keys of one run apart from those of others, 40 bits.
fn run_number() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() as u64 ^ u64::from(std::process::id())) & 0xff_ffff_ffff
}
