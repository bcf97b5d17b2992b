//! What compressing frames one by one (no context kept for a connection) would save and cost: bytes and
//! CPU time for each kind of frame and codec, as a Markdown table.
//!
//! `cargo run --release --manifest-path bench/compression/Cargo.toml`. The texts are the sentences of
//! this repository's own documents, cut to the lengths of chat messages, and some
//! lines of Chinese; dictionaries are trained on one half of them and measured on the other.

use std::{fmt::Write as _, fs, hint::black_box, io, path::Path, time::Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use millrace_protocol::chat::{
    Conversation, ConversationsReply, Deliver, Message, PullReply, SendMessage,
};
use serde::Serialize;

/// Frames of one kind that are measured.
const FRAMES: usize = 400;

/// Bytes of a dictionary; every process and every client would have it.
const DICTIONARY_BYTES: usize = 16 * 1024;

const HEADER_BYTES: usize = 12;

const CHINESE: &[&str] = &[
    "你好，在吗？", "今天晚上一起吃饭吧", "好的，我马上到", "会议改到下午三点了", "收到，谢谢！",
    "这个问题我再看一下", "明天早上九点在公司门口见", "文件我已经发到群里了，大家看一下", "哈哈哈哈",
    "没关系，下次再说", "你到家了吗？到了告诉我一声", "周末要不要去爬山？听说天气不错",
];

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let sentences = sentences(&root)?;
    let (training, measured) = sentences.split_at(sentences.len() / 2);
    let mut random = fastrand::Rng::with_seed(1);
    let mut out = String::new();
    writeln!(out, "| frame | bytes | codec | bytes left | of it | compress µs | decompress µs |")
        .map_err(io::Error::other)?;
    writeln!(out, "|---|---:|---|---:|---:|---:|---:|").map_err(io::Error::other)?;
    for kind in KINDS {
        let train = frames(kind, training, &mut random, 2_000);
        let frames = frames(kind, measured, &mut random, FRAMES);
        let dictionary = zstd::dict::from_samples(&train, DICTIONARY_BYTES)?;
        table(&mut out, kind.0, &frames, &dictionary).map_err(io::Error::other)?;
    }
    println!("{out}");
    Ok(())
}

/// Prose of the documents, a line of chat each.
fn sentences(root: &Path) -> io::Result<Vec<String>> {
    let mut all = vec![];
    for folder in ["docs", "docs/measurements", "."] {
        let mut paths: Vec<_> =
            fs::read_dir(root.join(folder))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
            let text = fs::read_to_string(path)?.replace(['|', '`', '*', '#', '\n'], " ");
            all.extend(text.split(['.', ';', ':', ',']).map(|s| s.trim().to_owned()));
        }
    }
    all.retain(|sentence| (2..300).contains(&sentence.len()));
    let mut random = fastrand::Rng::with_seed(7);
    random.shuffle(&mut all);
    let count = all.len();
    for _ in 0..count / 5 {
        let at = random.usize(..all.len());
        all[at] = CHINESE[random.usize(..CHINESE.len())].to_owned();
    }
    Ok(all)
}

/// A kind of frame: its name, whether it is JSON, and how many messages or rows it holds.
type Kind = (&'static str, bool, Shape, usize);

#[derive(Clone, Copy)]
enum Shape {
    Send,
    Deliver,
    Pull,
    Conversations,
}

const KINDS: &[Kind] = &[
    ("send_message", false, Shape::Send, 1),
    ("send_message, JSON", true, Shape::Send, 1),
    ("deliver, 1 message", false, Shape::Deliver, 1),
    ("deliver, 1 message, JSON", true, Shape::Deliver, 1),
    ("deliver, 20 messages", false, Shape::Deliver, 20),
    ("pull reply, 100 messages", false, Shape::Pull, 100),
    ("pull reply, 100 messages, JSON", true, Shape::Pull, 100),
    ("conversations, 50 rows", false, Shape::Conversations, 50),
];

fn id(random: &mut fastrand::Rng) -> String {
    (0..32).map(|_| char::from_digit(random.u32(..16), 16).unwrap_or('0')).collect()
}

fn uuid(random: &mut fastrand::Rng) -> String {
    let hex = format!("0199a1c3{}", &id(random)[..24]);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

fn message(sentences: &[String], random: &mut fastrand::Rng, peers: &(String, String), n: u64) -> Message {
    let sender = if random.bool() { &peers.0 } else { &peers.1 };
    Message {
        conversation_id: format!("s:{}:{}:{}", peers.0.len(), peers.0, peers.1),
        conversation_type: 1,
        sequence: 1_000 + n,
        message_id: uuid(random),
        client_message_id: id(random)[..22].to_owned(),
        sender_id: sender.clone(),
        r#type: 1,
        body: sentences[random.usize(..sentences.len())].clone(),
        sent_at_ms: 1_790_000_000_000 + random.i64(..1_000_000_000),
        ..Message::default()
    }
}

fn peers(random: &mut fastrand::Rng) -> (String, String) {
    (format!("user{:07}", random.u32(..1_000_000)), format!("user{:07}", random.u32(1_000_000..2_000_000)))
}

fn frames(
    &(_, json, shape, count): &Kind,
    sentences: &[String],
    random: &mut fastrand::Rng,
    frames: usize,
) -> Vec<Vec<u8>> {
    let messages = |random: &mut fastrand::Rng| {
        let peers = peers(random);
        (0..count as u64).map(|n| message(sentences, random, &peers, n)).collect::<Vec<_>>()
    };
    let one = |random: &mut fastrand::Rng| match shape {
        Shape::Send => {
            let message = SendMessage {
                client_message_id: id(random)[..22].to_owned(),
                user_id: peers(random).0,
                r#type: 1,
                body: sentences[random.usize(..sentences.len())].clone(),
                ..SendMessage::default()
            };
            encoded(&message, json)
        }
        Shape::Deliver => encoded(&Deliver { messages: messages(random) }, json),
        Shape::Pull => {
            let reply = PullReply { messages: messages(random), complete: true, ..PullReply::default() };
            encoded(&reply, json)
        }
        Shape::Conversations => {
            let row = |n: u64, random: &mut fastrand::Rng| {
                let peers = peers(random);
                let last = message(sentences, random, &peers, n);
                Conversation {
                    conversation_id: last.conversation_id.clone(),
                    r#type: 1,
                    name: peers.1,
                    max_sequence: last.sequence,
                    read_sequence: last.sequence - 1,
                    unread: 1,
                    version: 1_000_000 + n * 37,
                    last_message: Some(last),
                    ..Conversation::default()
                }
            };
            let conversations = (0..count as u64).map(|n| row(n, random)).collect();
            encoded(&ConversationsReply { conversations, ..ConversationsReply::default() }, json)
        }
    };
    (0..frames).map(|_| one(random)).collect()
}

fn encoded<M: prost::Message + Serialize>(message: &M, json: bool) -> Vec<u8> {
    if json { serde_json::to_vec(message).unwrap_or_default() } else { message.encode_to_vec() }
}

/// A way to compress one body, and to get it back.
struct Codec<'a> {
    name: &'static str,
    compress: Box<dyn FnMut(&[u8]) -> Vec<u8> + 'a>,
    decompress: Box<dyn FnMut(&[u8], usize) -> Vec<u8> + 'a>,
}

fn codecs(dictionary: &[u8]) -> io::Result<Vec<Codec<'_>>> {
    let mut all = vec![];
    for (name, level) in [("deflate 1", 1), ("deflate 6", 6)] {
        let mut compress = Compress::new(Compression::new(level), false);
        let mut decompress = Decompress::new(false);
        all.push(Codec {
            name,
            compress: Box::new(move |bytes| {
                compress.reset();
                let mut out = Vec::with_capacity(bytes.len() + 64);
                black_box(compress.compress_vec(bytes, &mut out, FlushCompress::Finish).is_ok());
                out
            }),
            decompress: Box::new(move |bytes, length| {
                decompress.reset(false);
                let mut out = Vec::with_capacity(length);
                black_box(decompress.decompress_vec(bytes, &mut out, FlushDecompress::Finish).is_ok());
                out
            }),
        });
    }
    all.push(Codec {
        name: "lz4",
        compress: Box::new(lz4_flex::block::compress),
        decompress: Box::new(|bytes, length| {
            lz4_flex::block::decompress(bytes, length).unwrap_or_default()
        }),
    });
    all.push(Codec {
        name: "lz4, dictionary",
        compress: Box::new(move |bytes| lz4_flex::block::compress_with_dict(bytes, dictionary)),
        decompress: Box::new(move |bytes, length| {
            lz4_flex::block::decompress_with_dict(bytes, length, dictionary).unwrap_or_default()
        }),
    });
    for (name, level, with) in [
        ("zstd 1", 1, false),
        ("zstd 3", 3, false),
        ("zstd 1, dictionary", 1, true),
        ("zstd 3, dictionary", 3, true),
    ] {
        let (mut compress, mut decompress) = if with {
            (
                zstd::bulk::Compressor::with_dictionary(level, dictionary)?,
                zstd::bulk::Decompressor::with_dictionary(dictionary)?,
            )
        } else {
            (zstd::bulk::Compressor::new(level)?, zstd::bulk::Decompressor::new()?)
        };
        all.push(Codec {
            name,
            compress: Box::new(move |bytes| compress.compress(bytes).unwrap_or_default()),
            decompress: Box::new(move |bytes, length| {
                decompress.decompress(bytes, length).unwrap_or_default()
            }),
        });
    }
    Ok(all)
}

fn table(
    out: &mut String,
    name: &str,
    frames: &[Vec<u8>],
    dictionary: &[u8],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let total: usize = frames.iter().map(|frame| HEADER_BYTES + frame.len()).sum();
    let mean = total / frames.len();
    for mut codec in codecs(dictionary)? {
        let packed: Vec<Vec<u8>> = frames.iter().map(|frame| (codec.compress)(frame)).collect();
        for (frame, packed) in frames.iter().zip(&packed) {
            assert_eq!((codec.decompress)(packed, frame.len()), *frame, "{}", codec.name);
        }
        // A body that does not get smaller would travel as it is.
        let left: usize = frames
            .iter()
            .zip(&packed)
            .map(|(frame, packed)| HEADER_BYTES + packed.len().min(frame.len()))
            .sum();
        let compress = time(frames.len(), || {
            frames.iter().for_each(|frame| drop(black_box((codec.compress)(frame))));
        });
        let decompress = time(frames.len(), || {
            for (frame, packed) in frames.iter().zip(&packed) {
                drop(black_box((codec.decompress)(packed, frame.len())));
            }
        });
        let percent = 100 * left / total;
        writeln!(
            out,
            "| {name} | {mean} | {} | {} | {percent} % | {compress:.2} | {decompress:.2} |",
            codec.name,
            left / frames.len()
        )?;
    }
    Ok(())
}

/// The best of several rounds, in microseconds a frame.
fn time(frames: usize, mut round: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..7 {
        let began = Instant::now();
        round();
        best = best.min(began.elapsed().as_secs_f64());
    }
    best * 1e6 / frames as f64
}
