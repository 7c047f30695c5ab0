//! gRPC by the crate tonic: a unary call over a Unix socket. The message is the 64 bytes themselves,
//! so that no time goes into protobuf.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper_util::rt::TokioIo;
use lapce_ai::ipc::monotonic_ns;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::round_trips::RoundTrips;
use super::scratch::Scratch;
use super::tcp;
use super::tokio::{runtime, spinning};
use super::window::{Clock, WINDOW};
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::payloads::{payload, stamp};
use crate::row::Row;

const WARM_UP: u64 = 300;
const PATH: &str = "/bench.Echo/Call";

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes::Buf::remaining(from)];
        bytes::Buf::copy_to_slice(from, &mut item);
        Ok(Some(item))
    }
}

#[derive(Clone, Copy)]
struct Echo;

impl UnaryService<Vec<u8>> for Echo {
    type Response = Vec<u8>;
    type Future = Ready<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(tonic::server::Grpc::new(Plain).unary(Echo, request).await) })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

pub fn serve(name: &str) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let listener = UnixListener::bind(name)?;
        println!("ready {name}");
        Server::builder()
            .max_concurrent_streams(WINDOW as u32) // the default is fewer
            .add_service(Echo)
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await?;
        Ok(())
    })
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration.as_nanos() as u64;
    let scratch = Scratch::new("grpc");
    let path = scratch.temporary();
    let name = path.display().to_string();
    for windowed in [false, true] {
        context.measure(tcp::row("gRPC (tonic)", windowed), |row| {
            scratch.clear(); // of the run before
            let _served = Served::start(&["--kind", "grpc", "--cpu", &cpu, "--name", &name])?;
            // Spinning saves a tenth of a round trip, but costs a third of the calls in a window.
            let runtime = if windowed { runtime()? } else { spinning()? };
            runtime.block_on(async {
                let client = connect(&path).await?;
                match windowed {
                    true => window(client, row, duration).await,
                    false => one_by_one(client, row, duration).await,
                }
            })
        })?;
    }
    Ok(())
}

async fn connect(path: &Path) -> Result<tonic::client::Grpc<Channel>, Failure> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is not used: the connector knows where.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await?;
    Ok(tonic::client::Grpc::new(channel))
}

async fn call(
    mut client: tonic::client::Grpc<Channel>,
    sent: Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    client.ready().await?;
    let request = Request::new(sent.clone());
    let answer = client
        .unary(request, PathAndQuery::from_static(PATH), Plain)
        .await?;
    Ok((sent, answer.into_inner()))
}

async fn one_by_one(
    client: tonic::client::Grpc<Channel>,
    row: &mut Row,
    duration: u64,
) -> Result<(), Failure> {
    let mut trips = RoundTrips::new(WARM_UP, duration);
    let mut message = payload(64);
    for number in 0u64.. {
        stamp(&mut message, number);
        let start = monotonic_ns();
        let (sent, answer) = call(client.clone(), message.clone()).await?;
        let now = monotonic_ns();
        if answer != sent {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    row.push_latencies(trips.into_histogram());
    Ok(())
}

async fn window(
    client: tonic::client::Grpc<Channel>,
    row: &mut Row,
    duration: u64,
) -> Result<(), Failure> {
    let mut calls = FuturesUnordered::new();
    let mut message = payload(64);
    let mut clock = Clock::new(WARM_UP, duration);
    let (mut number, mut answered) = (0, 0);
    loop {
        while calls.len() < WINDOW {
            number += 1;
            stamp(&mut message, number);
            calls.push(call(client.clone(), message.clone()));
        }
        let (sent, answer) = calls.next().await.ok_or("no call is on its way")??;
        if answer != sent {
            return Err(wrong_answer().into());
        }
        answered += 1;
        if let Some(rate) = clock.rate(answered, monotonic_ns()) {
            row.push("requests", "/s", rate);
            return Ok(());
        }
    }
}
