//! `codecachectl`: talks to a running codecached.

mod arenas;
mod args;
mod batch;
mod bench;
mod call;
mod context;
mod diagnostics;
mod disasm;
mod executions;
mod failure;
mod health;
mod install;
mod listing;
mod picture;
mod progress;
mod residency;
mod signatures;
mod status;
mod symbols;
mod table;
mod terminal;
mod units;
mod value;

use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use args::{Arguments, Command};
use context::{Context, Report};
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = match run(arguments) {
        Ok(report) => report,
        Err(failure) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(io::stderr(), "codecachectl: {failure}");
            return failure.exit.into();
        }
    };
    match print(&report.text) {
        Ok(()) => report.exit.into(),
        // A reader that has enough, such as `head`, is no failure of ours.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => report.exit.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "codecachectl: cannot write to standard output: {error}");
            Exit::Refused.into()
        }
    }
}

fn run(arguments: Arguments) -> Result<Report, Failure> {
    runtime(&arguments.command)?.block_on(async {
        let context = Context::connect(arguments.common).await?;
        match arguments.command {
            Command::Install(asked) => install::run(&context, asked).await,
            Command::Lookup(asked) => residency::lookup(&context, asked).await,
            Command::Symbols(asked) => symbols::run(&context, asked).await,
            Command::Call(asked) => call::run(&context, asked).await,
            Command::Batch(asked) => batch::run(&context, asked).await,
            Command::Executions => executions::list(&context).await,
            Command::Cancel(asked) => executions::cancel(&context, asked).await,
            Command::Evict(asked) => residency::evict(&context, asked).await,
            Command::Unquarantine(asked) => residency::unquarantine(&context, asked).await,
            Command::List(asked) => listing::run(&context, asked).await,
            Command::Disasm(asked) => disasm::run(&context, asked).await,
            Command::Stats => status::stats(&context).await,
            Command::Arenas(asked) => arenas::run(&context, asked).await,
            Command::Capabilities => status::capabilities(&context).await,
            Command::Health(asked) => health::run(&context, asked).await,
            Command::Bench(asked) => bench::run(&context, asked).await,
        }
    })
}

/// One thread is enough for everything but the load generator.
fn runtime(command: &Command) -> Result<Runtime, Failure> {
    let built = match command {
        Command::Bench(asked) if asked.threads > 1 => {
            Builder::new_multi_thread().worker_threads(asked.threads.into()).enable_all().build()
        }
        _ => Builder::new_current_thread().enable_all().build(),
    };
    built.map_err(|error| Failure::local(format!("cannot start the runtime: {error}")))
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
