//! UDP and TCP: decode a question, answer it from the zone or from upstream.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Record},
};
use parking_lot::RwLock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};

use super::{
    forward,
    zone::{Answer, Zone},
};

/// Questions that are worked on at once; more are dropped, and the client asks again.
const MAX_QUESTIONS: usize = 1024;
/// Open TCP connections.
const MAX_CONNECTIONS: usize = 256;
/// A TCP connection without a question for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// The largest answer over UDP to a client that does not say what it takes, bytes.
const PLAIN_UDP_BYTES: u16 = 512;
/// The largest answer over UDP at all, so that it is not fragmented, bytes.
const MAX_UDP_BYTES: u16 = 1232;

/// The server; cheap to clone.
#[derive(Clone)]
pub struct Server {
    zone: Arc<RwLock<Zone>>,
    upstreams: Arc<[SocketAddr]>,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Server {
    pub fn new(zone: Arc<RwLock<Zone>>, upstreams: Vec<SocketAddr>) -> Self {
        Self {
            zone,
            upstreams: upstreams.into(),
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    pub async fn udp(self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let Ok(permit) = self.questions.clone().try_acquire_owned() else { continue };
            let question = buffer[..length].to_vec();
            let (server, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                if let Some(answer) = server.answer(&question, true).await {
                    // The client may be gone.
                    let _ = socket.send_to(&answer, from).await;
                }
                drop(permit);
            });
        }
    }

    pub async fn tcp(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors: not worth a busy loop.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                // An error ends the connection, and the client sees that.
                let _ = server.connection(stream).await;
                drop(permit);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
            let mut question = vec![0; usize::from(length)];
            tokio::time::timeout(IDLE, stream.read_exact(&mut question)).await??;
            let Some(answer) = self.answer(&question, false).await else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
        }
    }

    /// The answer to a question, as bytes; `None` for what is no question.
    async fn answer(&self, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        let request = match Message::from_vec(bytes) {
            Ok(request) => request,
            Err(_) => {
                let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
                return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
            }
        };
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let [query] = request.queries.as_slice() else {
            return self.reply(&request, ResponseCode::FormErr, Vec::new(), Vec::new(), Vec::new(), udp);
        };
        if request.metadata.op_code != OpCode::Query || query.query_class != DNSClass::IN {
            return self.reply(&request, ResponseCode::NotImp, Vec::new(), Vec::new(), Vec::new(), udp);
        }
        // The lock is held for the look-up only.
        let (answer, authority) = {
            let zone = self.zone.read();
            (zone.resolve(&query.name, query.query_type), zone.authority())
        };
        match answer {
            Answer::Records { answers, additionals } => {
                let authorities = if answers.is_empty() { vec![authority] } else { Vec::new() };
                self.reply(&request, ResponseCode::NoError, answers, authorities, additionals, udp)
            }
            Answer::NoSuchName => {
                self.reply(&request, ResponseCode::NXDomain, Vec::new(), vec![authority], Vec::new(), udp)
            }
            Answer::Alias(alias, target) => {
                let mut answers = vec![*alias];
                let own = self.zone.read().resolve(&target, query.query_type);
                match own {
                    Answer::Records { answers: more, .. } => answers.extend(more),
                    Answer::NotOurs => {
                        let query = Query::query(target, query.query_type);
                        answers.extend(forward::resolve(&self.upstreams, query).await);
                    }
                    _ => {}
                }
                self.reply(&request, ResponseCode::NoError, answers, Vec::new(), Vec::new(), udp)
            }
            Answer::NotOurs => match forward::relay(&self.upstreams, bytes, udp).await {
                Some(answer) => Some(answer),
                None => self.reply(&request, ResponseCode::ServFail, Vec::new(), Vec::new(), Vec::new(), udp),
            },
        }
    }

    fn reply(
        &self,
        request: &Message,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
        additionals: Vec<Record>,
        udp: bool,
    ) -> Option<Vec<u8>> {
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata.recursion_desired = request.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = code != ResponseCode::ServFail;
        reply.metadata.response_code = code;
        reply.queries = request.queries.clone();
        reply.answers = answers;
        reply.authorities = authorities;
        reply.additionals = additionals;
        let mut room = PLAIN_UDP_BYTES;
        if let Some(edns) = &request.edns {
            room = edns.max_payload().clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES);
            let mut own = Edns::new();
            own.set_max_payload(MAX_UDP_BYTES);
            reply.set_edns(own);
        }
        let bytes = reply.to_vec().ok()?;
        if !udp || bytes.len() <= usize::from(room) {
            return Some(bytes);
        }
        // What is not asked for goes first; then the client is told to come by TCP.
        reply.additionals.clear();
        let bytes = reply.to_vec().ok()?;
        if bytes.len() <= usize::from(room) {
            return Some(bytes);
        }
        reply.truncate().to_vec().ok()
    }
}
