//! Code that is read before it runs and shown afterwards: screening, disassembly and the instruction of a trap, through
//! the built daemon.

mod support;

use std::{fs, process::Command};

use codecached::{
    client::Client,
    proto::{
        DisassembleRequest, EvictRequest, LookupRequest, ResultType, ScreenRule, TrapKind, disassemble_request,
        evict_request, lookup_request, value::Kind,
    },
};
use support::{ADD, Daemon, call, elf, flat, handle, trapped};
use tonic::Code;

/// xor eax, eax; syscall; ret
const SYSCALL: &[u8] = &[0x31, 0xc0, 0x0f, 0x05, 0xc3];
/// mov rax, [rdi]; ret
const LOAD: &[u8] = &[0x48, 0x8b, 0x07, 0xc3];

fn request(key: &str, symbol: &str, max_instructions: u32) -> DisassembleRequest {
    DisassembleRequest {
        target: Some(disassemble_request::Target::Key(key.as_bytes().to_vec().into())),
        symbol: symbol.to_owned(),
        max_instructions,
        ..DisassembleRequest::default()
    }
}

async fn metric(daemon: &Daemon, series: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(&daemon.metrics).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series}")).trim().to_owned()
}

#[tokio::test]
async fn a_system_call_is_installed_with_a_warning_where_the_daemon_warns() {
    let daemon = Daemon::start_with(&["--set", "code.screen=warn"]);
    let client = daemon.client().await;
    let installed = client.install(flat("k", SYSCALL)).await.unwrap();
    assert!(installed.created);
    assert_eq!(installed.screen_findings_total, 1);
    let found = &installed.screen_findings[0];
    assert_eq!((found.rule(), &*found.function, &*found.instruction), (ScreenRule::SystemCall, "f", "syscall"));
    assert_eq!((found.function_offset_bytes, found.offset_bytes), (2, 2));
    let again = client.install(flat("k", SYSCALL)).await.unwrap();
    assert!(!again.created && again.screen_findings.is_empty() && again.screen_findings_total == 0);
    support::until("the log", async || daemon.log().contains("syscall at f+0x2").then_some(())).await;
    assert_eq!(daemon.log().matches("must not").count(), 1);
    assert_eq!(client.install(flat("add", ADD)).await.unwrap().screen_findings_total, 0);
}

#[tokio::test]
async fn a_system_call_is_refused_where_the_daemon_rejects_and_what_compilers_make_is_taken() {
    let daemon = Daemon::start_with(&["--set", "code.screen=reject"]);
    let client = daemon.client().await;
    let error = client.install(flat("k", SYSCALL)).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::InvalidArgument), "FORBIDDEN_INSTRUCTION"));
    assert!(error.to_string().contains("syscall at f+0x2 (a system call) (1 in all)"), "{error}");
    let error = client.install(elf("hostile", support::compile("hostile.S"))).await.unwrap_err();
    assert_eq!(error.reason(), "FORBIDDEN_INSTRUCTION", "{error}");
    let status = client.status().await.unwrap();
    assert_eq!((status.counters.unwrap().installs, status.budget.unwrap().charged_bytes), (0, 0));
    let refused = "codecache_install_rejections_total{reason=\"FORBIDDEN_INSTRUCTION\"}";
    assert_eq!(metric(&daemon, refused).await, "2");
    for level in ["-O0", "-O2", "-O3"] {
        for file in ["asks_much.c", "counter.c", "doubles.c"] {
            let object = support::compile_with(file, &[level, "-fPIC", "-fno-builtin", "-funroll-loops"]);
            let installed = client.install(elf(&format!("{file}{level}"), object)).await;
            assert_eq!(installed.unwrap_or_else(|error| panic!("{file} {level}: {error}")).screen_findings_total, 0);
        }
    }
}

#[tokio::test]
async fn without_screening_a_system_call_is_installed_silently() {
    let daemon = Daemon::start();
    let installed = daemon.client().await.install(flat("k", SYSCALL)).await.unwrap();
    assert_eq!((installed.screen_findings.len(), installed.screen_findings_total), (0, 0));
}

async fn trap(client: &Client, entry: u64, symbol: &str, arguments: Vec<Kind>) -> (TrapKind, String) {
    let trap = trapped(client.execute(call(entry, symbol, arguments, ResultType::Void)).await.unwrap());
    (trap.kind(), trap.instruction)
}

#[tokio::test]
async fn a_trap_shows_the_instruction_that_it_happened_at() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let load = handle(&client.install(flat("load", LOAD)).await.unwrap());
    let fault = trap(&client, load, "f", vec![Kind::U64(0)]).await;
    assert_eq!(fault, (TrapKind::Segv, "mov rax, qword ptr [rdi]".to_owned()));
    let last = handle(&client.install(flat("ud2", &[0x0f, 0x0b])).await.unwrap());
    assert_eq!(trap(&client, last, "f", Vec::new()).await, (TrapKind::Ill, "ud2".to_owned()));
    let int3 = handle(&client.install(flat("int3", &[0x90, 0xcc, 0xc3])).await.unwrap());
    assert_eq!(trap(&client, int3, "f", Vec::new()).await, (TrapKind::Breakpoint, "int3".to_owned()));
    let away = handle(&client.install(flat("away", &[0xff, 0xe7])).await.unwrap());
    assert_eq!(trap(&client, away, "f", vec![Kind::U64(0)]).await, (TrapKind::Segv, String::new()));
    let flags = ["-O0", "-fPIC", "-fno-builtin"];
    let asks = handle(&client.install(elf("asks", support::compile_with("asks_much.c", &flags))).await.unwrap());
    let (kind, instruction) = trap(&client, asks, "give_up", Vec::new()).await;
    assert!(kind == TrapKind::Abort && instruction.starts_with("call "), "{kind:?} {instruction}");
}

#[tokio::test]
async fn a_call_whose_entry_went_meanwhile_traps_without_an_instruction() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    // jmp to itself
    let entry = handle(&client.install(flat("spin", &[0xeb, 0xfe])).await.unwrap());
    let mut spin = call(entry, "f", Vec::new(), ResultType::Void);
    spin.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    let running = tokio::spawn({
        let client = client.clone();
        async move { trapped(client.execute(spin).await.unwrap()) }
    });
    support::until("the call", async || (client.status().await.unwrap().executors?.running > 0).then_some(())).await;
    let target = Some(evict_request::Target::Key(b"spin"[..].into()));
    client.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap();
    let trap = running.await.unwrap();
    assert_eq!((trap.kind(), &*trap.symbol, &*trap.instruction), (TrapKind::Timeout, "f", ""));
    let again = handle(&client.install(flat("spin", &[0xeb, 0xfe])).await.unwrap());
    let mut spin = call(again, "f", Vec::new(), ResultType::Void);
    spin.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: 2_000_000 });
    assert!(trapped(client.execute(spin).await.unwrap()).instruction.starts_with("jmp 0x"), "no name, but where it is");
}

#[tokio::test]
async fn an_entry_is_disassembled_where_it_lies_and_that_is_no_use_of_it() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let object = support::compile_with("counter.c", &["-O1", "-fPIC", "-fno-inline"]);
    let entry = client.install(elf("counter", object)).await.unwrap().entry.unwrap();
    let all = client.disassemble(request("counter", "", 0)).await.unwrap();
    assert!(!all.truncated);
    let bytes: usize = all.instructions.iter().map(|it| it.bytes.len()).sum();
    assert_eq!(bytes as u64, entry.code_bytes);
    let mut next_address = all.instructions[0].address;
    for it in &all.instructions {
        assert_eq!(it.address, next_address);
        next_address += it.bytes.len() as u64;
    }
    let named: Vec<&str> = all.instructions.iter().map(|it| &*it.symbol).filter(|it| !it.is_empty()).collect();
    assert_eq!(named, ["next", "slow_next", "spoil_and_fault", "spoil_and_spin", "peek_zeroed", "add_counted"]);
    let one = client.disassemble(request("counter", "spoil_and_spin", 0)).await.unwrap();
    assert!(!one.truncated && one.instructions[0].symbol == "spoil_and_spin", "{one:?}");
    assert!(one.instructions.iter().any(|it| it.text.starts_with("jmp spoil_and_spin+")), "{one:?}");
    let cut = client.disassemble(request("counter", "next", 1)).await.unwrap();
    assert!(cut.truncated && cut.instructions.len() == 1);
    let by_handle = DisassembleRequest {
        target: Some(disassemble_request::Target::Handle(entry.handle)),
        ..request("", "next", 1)
    };
    assert_eq!(client.disassemble(by_handle).await.unwrap(), cut);

    let missing = client.disassemble(request("counter", "absent", 0)).await.unwrap_err();
    assert_eq!(missing.reason(), "SYMBOL_NOT_FOUND");
    assert_eq!(client.disassemble(request("absent", "", 0)).await.unwrap_err().reason(), "ENTRY_NOT_FOUND");
    assert_eq!(client.disassemble(request("counter", "", 10_001)).await.unwrap_err().reason(), "INVALID_FIELD");
    assert_eq!(metric(&daemon, "codecache_evictions_total{reason=\"requested\"}").await, "0");
    assert_eq!(client.status().await.unwrap().counters.unwrap().lookup_hits, 0);
    let peek = LookupRequest {
        target: Some(lookup_request::Target::Handle(entry.handle)),
        peek: true,
        view: codecached::proto::EntryView::Full.into(),
        ..LookupRequest::default()
    };
    assert_eq!(client.lookup(peek).await.unwrap().entry.unwrap().pins, 0);
}

#[tokio::test]
async fn an_answer_with_long_names_is_cut_to_what_clients_take() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let mut install = flat("names", &[0xc3; 4096]);
    let name = |at: u64| codecached::proto::FlatEntry { name: format!("{at:01000}"), offset_bytes: at };
    install.flat_entries = (0..4000).map(name).collect();
    client.install(install).await.unwrap();
    let answer = client.disassemble(request("names", "", 10_000)).await.unwrap();
    assert!(answer.truncated && answer.instructions.len() > 1000);
    let encoded = prost::Message::encoded_len(&answer);
    assert!((1 << 20..3 << 20).contains(&encoded), "{encoded} bytes");
}

#[test]
fn the_client_shows_findings_instructions_and_where_a_call_trapped() {
    let daemon = Daemon::start_with(&["--set", "code.screen=warn"]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (asks, load) = (file("syscall", SYSCALL), file("load", LOAD));
    let case = |code: i32, arguments: &[&str], needles: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecachectl"));
        let output = command.args(["--server", &daemon.target]).args(arguments).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        for needle in needles {
            assert!(text.contains(needle), "{arguments:?} should say {needle}: {text}");
        }
    };
    case(0, &["install", "asks", &asks, "--flat", "f=0"], &["created", "asks: SYSTEM_CALL: syscall at f+0x2"]);
    case(0, &["disasm", "asks"], &["f:\n", "31c0", "xor eax, eax", "syscall", "ret"]);
    case(0, &["disasm", "asks", "f", "--limit", "1"], &["there are more, --limit"]);
    case(0, &["--json", "disasm", "asks"], &["\"bytes_hex\": \"0f05\""]);
    case(3, &["disasm", "asks", "g"], &["SYMBOL_NOT_FOUND"]);
    case(0, &["install", "load", &load, "--flat", "f=0"], &["created"]);
    case(4, &["call", "load", "f", "u64:0"], &["SEGV", "instruction", "mov rax, qword ptr [rdi]"]);
}
