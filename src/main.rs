//! The daemon's command line: argv -> config -> daemon.

use std::{
    env,
    error::Error,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Args, Parser, Subcommand};
use codecached::{
    config::{Config, Log, LogFormat, Origins, Setting, Sources},
    daemon, demo,
};
use tracing_subscriber::EnvFilter;

const AFTER_HELP: &str = "Values come from: defaults < file < environment (CODECACHED_<SECTION>_<KEY>) < flags.
config.toml has every key with its unit, range and default.

Exit codes: 0 done, 1 failed (the reason is on standard error), 2 misuse of the command line.

Whoever may connect may run code as this daemon's user. Faults in it are contained; it is not a security boundary.";

/// Of the package, and of the source it was built from.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let revision = option_env!("CODECACHED_REVISION").unwrap_or("unknown");
    format!("{} (revision {revision})", env!("CARGO_PKG_VERSION"))
});

/// A code-cache daemon: installs, finds, runs and evicts native code under a hard memory budget, over gRPC.
#[derive(Parser)]
#[command(name = "codecached", version = VERSION.as_str(), after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT, then drain within the grace and exit.
    Serve(Options),
    /// Validate the configuration and try what the platform must offer, show both, and exit.
    Check {
        #[command(flatten)]
        options: Options,
        /// Show what the daemon's process gives up once it has started, and what came of trying what is refused then.
        #[arg(long)]
        confinement: bool,
    },
    /// Show what it does: start a daemon, install a compiled C file, call it, contain a fault, evict.
    Demo,
}

#[derive(Args)]
struct Options {
    /// TOML file to read [or by environment: CODECACHED_CONFIG].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve gRPC: unix:PATH or tcp:ADDRESS:PORT, loopback only [repeatable].
    #[arg(long, value_name = "LISTENER")]
    listen: Vec<String>,
    /// Where to serve /metrics, /livez and /readyz: ADDRESS:PORT or off.
    #[arg(long, value_name = "ADDRESS|off")]
    metrics: Option<String>,
    /// What resident code may take in all, such as 268435456 or "256 MiB".
    #[arg(long, value_name = "BYTES")]
    budget_bytes: Option<String>,
    /// error, warn, info, debug, trace, or directives such as info,codecached::service=debug.
    #[arg(long, value_name = "DIRECTIVES")]
    log_level: Option<String>,
    /// text or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any other key [repeatable].
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = Setting::assignment)]
    set: Vec<Setting>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(options) => serve(options),
        Command::Check { options, confinement: false } => check(options),
        Command::Check { options, confinement: true } => confinement(options),
        Command::Demo => return demo::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not through the log: its level may hide it, and it may be what failed.
            let _gone = writeln!(io::stderr(), "codecached: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let (config, origins) = configure(options)?;
    start_log(&config.log, &origins)?;
    Ok(daemon::serve(config)?)
}

fn check(options: Options) -> Result<(), Box<dyn Error>> {
    let (config, origins) = configure(options)?;
    start_log(&config.log, &origins)?;
    let mut out = io::stdout().lock();
    for (key, value) in config.effective()? {
        writeln!(out, "{key} = {value} (from {})", origins.of(key))?;
    }
    let explained = daemon::explain(&config);
    for line in &explained.lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    for (name, finding) in daemon::check(&config)? {
        writeln!(out, "{name}: {finding}")?;
    }
    if explained.failed > 0 {
        out.flush()?;
        return Err(format!("{} of the findings are failures: see their remedies", explained.failed).into());
    }
    writeln!(out, "configuration and platform are fit")?;
    Ok(())
}

fn confinement(options: Options) -> Result<(), Box<dyn Error>> {
    let (config, origins) = configure(options)?;
    start_log(&config.log, &origins)?;
    let confined = daemon::confinement(&config)?;
    let mut out = io::stdout().lock();
    for (name, finding) in &confined.lines {
        writeln!(out, "{name}: {finding}")?;
    }
    out.flush()?;
    match confined.failed {
        0 => Ok(()),
        failed => Err(format!("{failed} attempts should have been refused").into()),
    }
}

fn configure(options: Options) -> Result<(Config, Origins), Box<dyn Error>> {
    let sources = Sources {
        file: options.config.clone().or_else(|| env::var_os("CODECACHED_CONFIG").map(PathBuf::from)),
        environment: env::vars_os().collect(),
        flags: settings(options),
    };
    Config::load(&sources).map_err(|error| format!("bad configuration: {error}").into())
}

/// The named flags come after `--set`, so that the more special one wins.
fn settings(options: Options) -> Vec<Setting> {
    let mut settings = options.set;
    if !options.listen.is_empty() {
        settings.push(Setting::list("--listen", "server.listen", &options.listen));
    }
    let texts = [
        ("--metrics", "server.metrics", options.metrics),
        ("--budget-bytes", "cache.budget_bytes", options.budget_bytes),
        ("--log-level", "log.level", options.log_level),
        ("--log-format", "log.format", options.log_format),
    ];
    settings.extend(texts.into_iter().filter_map(|(flag, key, text)| Some(Setting::text(flag, key, text?))));
    settings
}

/// Logs to standard error from here on.
fn start_log(log: &Log, origins: &Origins) -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| {
        format!("bad configuration: log.level = {:?} (from {}): {error}", log.level, origins.of("log.level"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| format!("cannot start the log: {error}").into())
}
