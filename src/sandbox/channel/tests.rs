use std::io::IoSlice;
use std::mem::MaybeUninit;

use belljar_guest::{FDS_MAX, PACKET_MAX};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::played::Played;
use super::*;

fn send_bytes(played: &Played, packet: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    rustix::net::sendmsg(
        &played.control,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

fn some_file() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[tokio::test]
async fn a_guest_that_lies_ends_with_its_sandbox() {
    type Lie = fn(&Played);
    let lies: [(&str, Lie); 10] = [
        ("a slot that nobody asked for", |played| {
            played.say(&FromInit::SlotAdded { slot: 77, pid: 2 }, &[some_file().as_fd()]);
        }),
        ("a slot without its process", |played| {
            played.say(&FromInit::SlotAdded { slot: 0, pid: 2 }, &[]);
        }),
        ("a listener that nobody asked for", |played| {
            let kind = ListenKind::Tcp;
            played.say(&FromInit::Listening { port: 80, kind }, &[some_file().as_fd()]);
        }),
        ("a failure of what nobody asked for", |played| {
            let what = Failed::Slot(77);
            played.say(&FromInit::Failed { what, errno: 12 }, &[]);
        }),
        ("a second first word", |played| {
            played.say(&FromInit::Ready { version: VERSION }, &[]);
        }),
        ("an end with a descriptor", |played| {
            played.say(&FromInit::SlotGone { slot: 0 }, &[some_file().as_fd()]);
        }),
        ("no message", |played| send_bytes(played, &[0, 77], &[])),
        ("a frame that is too long", |played| {
            send_bytes(played, &vec![0; PACKET_MAX + 2], &[]);
        }),
        ("a memory file that is not there", |played| {
            send_bytes(played, &[1], &[])
        }),
        ("a memory file that is too large", |played| {
            // With nothing in it that takes room, and more than there is of memory once it is read.
            let file = memfd_create("message", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, 1 << 44).unwrap();
            send_bytes(played, &[1], &[file.as_fd()]);
        }),
    ];
    for (lie, tell) in lies {
        println!("{lie}");
        let (guest, _, mut played) = Played::greeted().await;
        tell(&played);
        played.is_ended().await;
        // And does no more.
        assert!(
            matches!(
                guest.add_slot(&[]).await,
                Err(ChannelError::Gone | ChannelError::Io { .. })
            ),
            "{lie}"
        );
    }
}

/// The kernel cuts off what there is no room for, and says so; what is left may look whole.
#[tokio::test]
async fn a_message_whose_descriptors_were_cut_off_is_none() {
    let (host, _, played) = Played::new();
    let files: Vec<_> = (0..2 * FDS_MAX).map(|_| some_file()).collect();
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let belljar_guest::Encoded::Packet(packet) = belljar_guest::encode(&FromInit::SlotGone { slot: 1 }) else {
        panic!("it is small")
    };
    send_bytes(&played, &packet, &files[..FDS_MAX]);
    let (_, whole) = packet::receive::<FromInit>(host.as_fd()).unwrap().unwrap();
    assert_eq!(whole.len(), FDS_MAX);
    send_bytes(&played, &packet, &files);
    let error = packet::receive::<FromInit>(host.as_fd()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_guest_that_hangs_up_takes_its_sandbox_along() {
    let (guest, _, mut played) = Played::greeted().await;
    let (_, other) = packet::pair().unwrap();
    drop(std::mem::replace(&mut played.control, other));
    played.is_ended().await;
    assert!(guest.add_slot(&[]).await.is_err());
}

/// Whoever is inside may kill a slot, but not speak for it.
#[tokio::test]
async fn a_slot_whose_first_word_is_another_ends_its_sandbox_and_one_that_dies_does_not() {
    for lies in [true, false] {
        let (guest, _, played) = Played::greeted().await;
        let play = tokio::task::spawn_blocking(move || {
            let slot = played.add_slot();
            if lies {
                packet::send(slot.as_fd(), &FromSlot::Started { pid: 1 }, &[]).unwrap();
            }
            played
        });
        let (answer, played) = tokio::join!(guest.add_slot(&[]), play);
        let mut played = played.unwrap();
        if lies {
            assert!(matches!(answer, Err(ChannelError::OutOfTurn)), "{answer:?}");
            played.is_ended().await;
        } else {
            assert!(matches!(answer, Err(ChannelError::Gone)), "{answer:?}");
            assert!(played.lives_on());
        }
    }
}

#[tokio::test]
async fn a_guest_of_another_version_is_not_listened_to() {
    let (ours, pid1, mut played) = Played::new();
    played.say(&FromInit::Ready { version: VERSION + 1 }, &[]);
    let (_guest, first) = Guest::expect(ours, pid1).unwrap();
    let heard = first.heard().await;
    let is_told = matches!(heard, Err(ChannelError::Version { theirs }) if theirs == VERSION + 1);
    assert!(is_told, "{heard:?}");
    played.is_ended().await;
}
