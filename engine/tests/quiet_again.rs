//! What a burst of answers has taken of memory is given back when all is quiet again. In a process of its own, whose
//! memory is looked at.

mod support;

use lapce_ai::ipc::{Request, Responder};
use support::*;

#[test]
fn a_burst_leaves_no_memory_behind() {
    const PUBLISH: u16 = 0x0101;
    // Of 30 MiB with what is around them.
    const PARTS: usize = 300_000;
    let kept = Kept::default();
    let server = keeping(&kept)
        .handler(PUBLISH, {
            let kept = kept.clone();
            move |_: Request<'_>, responder: Responder<'_>| {
                for _ in 0..PARTS {
                    kept.lock().unwrap()[0].stream_part(b"").unwrap();
                }
                responder.reply(b"");
            }
        })
        .start()
        .unwrap();
    let [mut reader, mut publisher] = [(); 2].map(|()| Peer::connect(address(&server)));
    reader.send(&request(WORK, 1, b""));
    eventually("it is served", || kept.lock().unwrap().len() == 1);
    publisher.expect_alive();
    let before = resident_bytes();
    publisher.send(&request(PUBLISH, 1, b""));
    for _ in 0..PARTS {
        reader.receive();
    }
    eventually("memory is given back", || {
        resident_bytes() < before + (8 << 20)
    });
    kept.lock().unwrap().clear();
}
