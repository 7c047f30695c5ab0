//! Long messages over shared memory: those that do not fit into one record.
//!
//! Their records are copied from the ring straight into the buffer in which the message is gathered, and
//! the CRC is computed in the same pass. An answer that repeats its request, as ECHO's does, is sent from
//! that same buffer: the header is exchanged and the CRC adjusted to it, not computed anew, so that the
//! CRC which the client computed covers the way there and back.

use super::Worker;
use super::batch::Chunk;
use super::shm::ROUND_BYTES;
use crate::shm::Corrupt;
use crate::uring::Key;
use crate::wire::{Flags, HEADER_BYTES, Header, crc};

impl Worker {
    /// Takes records that belong to the message being gathered. False if there were none.
    pub(super) fn take_into_message(&mut self, key: Key) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let assembler = &mut connection.assembler;
        let Some(ends) = &mut connection.out.ends else {
            return false;
        };
        let mut taken = 0;
        let mut corrupt = None;
        // Bounded by ROUND_BYTES.
        while taken < ROUND_BYTES {
            let Some(missing) = assembler.missing_bytes() else {
                break;
            };
            let record = match ends.rx.next_piece() {
                Ok(Some(record)) if record.frame_bytes() <= missing => record,
                Ok(Some(record)) if record.ends_with_crc() && taken == 0 => {
                    corrupt = Some(Corrupt("a CRC in the middle of a frame"));
                    break;
                }
                Ok(_) => break,
                Err(error) => {
                    corrupt = Some(error);
                    break;
                }
            };
            let bytes = record.frame_bytes();
            assembler.append_summed(bytes, |gathered, sum| {
                ends.rx.copy_summed(&record, 0..bytes, gathered, sum)
            });
            if let Some(crc) = ends.rx.crc_at_end(&record) {
                assembler.put_crc(crc);
            }
            let ack = ends.rx.advance(&record);
            ends.tx.acknowledged(ack);
            // At once: the client waits for this room.
            ends.rx.publish();
            taken += bytes;
        }
        if let Some(error) = corrupt {
            self.close_corrupt(key, error);
            return true;
        }
        if taken > 0 && connection.took(&self.stats, taken, self.now_ns) {
            self.handle_if_complete(key);
        }
        taken > 0
    }

    /// Handles the message being gathered, if all of it is there.
    fn handle_if_complete(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(complete) = connection.assembler.take_summed() else {
            return;
        };
        connection.message_complete();
        match complete {
            Err(refusal) => self.refuse(key, refusal, 0),
            Ok((header, frame))
                if self.batch.items.is_empty() && !header.flags.contains(Flags::COMPRESSED) =>
            {
                self.handle_frame(key, &header, frame);
            }
            // Others came before it, or it is compressed and may have to wait.
            Ok((header, frame)) => {
                let chunk = self.batch.add_chunk(Chunk::Owned(frame));
                self.batch.add_verified(key, header, chunk);
            }
        }
    }

    /// Handles a frame whose CRC is right and which fills a buffer of its own.
    fn handle_frame(&mut self, key: Key, header: &Header, mut frame: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let payload = &frame[HEADER_BYTES..];
        connection.out.lend(payload);
        self.dispatcher.frame(
            &self.shared.handlers,
            key,
            connection,
            header,
            payload,
            self.now_ns,
        );
        let pool = self.dispatcher.pool();
        let Some(mut answer) = connection.out.take_repeat() else {
            return pool.give(frame);
        };
        let length = payload.len();
        answer.crc32 =
            crc::exchange_header(header.crc32, &header.to_bytes(), &answer.to_bytes(), length);
        frame[..HEADER_BYTES].copy_from_slice(&answer.to_bytes());
        connection.out.send_frame(pool, frame);
    }
}
