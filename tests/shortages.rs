//! What the machine does not give the daemon or a client: a forbidden system call, descriptors, room in a file.

mod support;

use support::{COMMAND, COMPATIBILITY, NEW, SERVER, Scratch, config, run, start, text};

/// Runs a program in a place where a system call is answered with EPERM: number, program, arguments.
const CONFINED: &str = "
import ctypes, os, struct, sys
number, program = int(sys.argv[1]), sys.argv[2]
step = lambda code, yes, no, k: struct.pack('HBBI', code, yes, no, k)
steps = step(0x20, 0, 0, 0) + step(0x15, 0, 1, number) + step(0x06, 0, 0, 0x00050001) + step(0x06, 0, 0, 0x7fff0000)
steps = ctypes.create_string_buffer(steps)
filter = struct.pack('HxxxxxxP', 4, ctypes.addressof(steps))
prctl = ctypes.CDLL(None, use_errno=True).prctl
for call in ((38, 1, 0, 0, 0), (22, 2, ctypes.c_char_p(filter), 0, 0)):
    assert prctl(*call) == 0, ctypes.get_errno()
os.execv(program, sys.argv[2:])
";

/// Each of the three calls, as a profile that names only the others has it: no server that says it is
/// ready and then serves nobody.
#[test]
fn a_forbidden_io_uring_is_said_with_its_remedy() {
    let scratch = Scratch::new();
    let file = scratch.write("confined.toml", &config(&scratch, NEW, COMPATIBILITY));
    for call in ["425", "426", "427"] {
        let file = file.to_str().unwrap();
        let arguments = ["-c", CONFINED, call, SERVER, "--config", file];
        let output = run("python3", &arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("io_uring is forbidden here") && said.contains("seccomp profile"),
            "{call}: {said}"
        );
    }
}

/// Wherever they run out, a line says so, and nothing panics.
#[test]
fn too_few_descriptors_are_said() {
    let scratch = Scratch::new();
    let keys = format!("{NEW}\nworkers = 1");
    let file = scratch.write("few.toml", &config(&scratch, &keys, COMPATIBILITY));
    for descriptors in 6..=12 {
        let script = format!(
            "ulimit -n {descriptors}; exec {SERVER} --config {}",
            file.display()
        );
        let output = run("sh", &["-c", &script]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{descriptors}: {said}");
        assert!(said.contains("error: "), "{descriptors}: {said}");
        assert!(!said.contains("panicked"), "{descriptors}: {said}");
    }
}

/// What cannot be written to a log file that is as long as it may be is lost, and nothing else. (Without segments
/// it does not start, and here it may make none.)
#[test]
fn a_full_log_file_ends_no_daemon() {
    let scratch = Scratch::new();
    let file = scratch.write("full.toml", &config(&scratch, NEW, COMPATIBILITY));
    let script = format!(
        "ulimit -f 0; exec {SERVER} --config {} 2>{}",
        file.display(),
        scratch.write("full.log", "").display()
    );
    assert_eq!(run("sh", &["-c", &script]).status.code(), Some(1));
}

/// A client that cannot look whether the server lives does not say that it is gone.
#[test]
fn a_client_with_too_few_descriptors_says_so() {
    let scratch = Scratch::new();
    let _daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &[]);
    let address = format!("shm:{}", scratch.instance());
    // How many it has already depends on who started the tests.
    let mut some_lacked = false;
    for descriptors in 4..=10 {
        let script = format!("ulimit -n {descriptors}; exec {COMMAND} ping {address}");
        let said = text(&run("sh", &["-c", &script]).stderr);
        assert!(!said.contains("is gone"), "{descriptors}: {said}");
        some_lacked |= said.contains("Too many open files");
    }
    assert!(some_lacked);
}
