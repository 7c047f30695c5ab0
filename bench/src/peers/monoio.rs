//! monoio: one thread, echoing.

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpListener;

use crate::context::Failure;

pub fn serve() -> Result<(), Failure> {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        println!("ready {}", listener.local_addr()?);
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; 65_536];
        loop {
            let (result, read) = stream.read(buffer).await;
            let count = result?;
            if count == 0 {
                return Ok(());
            }
            let (result, written) = stream.write_all(read.slice(..count)).await;
            result?;
            buffer = written.into_inner();
        }
    })
}
