//! With real interfaces, in a network namespace of each test's own: threads have one each.

use std::fs::File;
use std::io::Read;
use std::process::Command;

use super::*;

const HEADER: usize = 12;

/// A network with nothing in it, for this thread.
fn empty_network() {
    // SAFETY: takes only a number, and only this thread of a test is affected.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "this test needs root: {}", io::Error::last_os_error());
}

#[track_caller]
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("this test needs iproute2");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {problem}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn tap(name: &str) -> Request<'_> {
    Request::new(name, Kind::Tap, HEADER)
}

#[track_caller]
fn refusal(request: &Request<'_>) -> String {
    request.open().expect_err("it opens").to_string()
}

#[test]
fn names_are_checked_before_the_kernel_sees_them() {
    let bad =
        ["", "a/b", "a b", "a:1", "tap%", "%dd%d", "tap%s", "0123456789abcdef", "tab\t", ".."];
    for name in bad {
        assert!(matches!(tap(name).open(), Err(TunError::Name)), "{name:?}");
    }
}

#[test]
fn the_kernel_completes_a_name_once_for_all_queues() {
    empty_network();
    let one = tap("rw%dx").open().unwrap();
    assert_eq!(one[0].name(), "rw0x");
    let several = Request { queues: 3, ..tap("rw%dx") }.open().unwrap();
    let names: Vec<_> = several.iter().map(Queue::name).collect();
    assert_eq!(names, ["rw1x"; 3]);
    drop(one);
    assert!(!ip("-brief link").contains("rw0x"), "it goes with its last queue");
}

#[test]
fn an_interface_in_use_and_one_of_another_kind_say_so() {
    empty_network();
    let _tap = tap("rw0").open().unwrap();
    assert_eq!(refusal(&tap("rw0")), "in use by another program");
    let tun = Request::new("rw0", Kind::Tun, HEADER);
    assert_eq!(refusal(&tun), "is no tun interface, but one of kind tap");
    assert_eq!(refusal(&tap("lo")), "is no tap interface");
    ip("link add br0 type bridge");
    assert_eq!(refusal(&tap("br0")), "is no tap interface, but one of kind bridge");
}

#[test]
fn one_queue_and_several_are_different_things() {
    empty_network();
    ip("tuntap add dev single mode tap vnet_hdr");
    ip("tuntap add dev several mode tap vnet_hdr multi_queue");
    assert_eq!(tap("single").open().unwrap().len(), 1);
    let two = |name| Request { queues: 2, ..tap(name) };
    let single = two("single").open();
    assert!(matches!(single, Err(TunError::SingleQueue(Kind::Tap))), "{single:?}");
    assert!(matches!(tap("several").open(), Err(TunError::MultiQueue(Kind::Tap))));
    assert_eq!(two("several").open().unwrap().len(), 2);
    // One of several, by itself.
    let one = Request { several: true, ..tap("several") };
    let [queue] = &one.open().unwrap()[..] else { panic!("not one queue") };
    assert!(queue.is_of_several().unwrap());
    assert!(!tap("single").open().unwrap()[0].is_of_several().unwrap());
    let many = Request { queues: 257, ..tap("several") };
    assert!(matches!(many.open(), Err(TunError::TooManyQueues)));
}

#[test]
fn it_stays_and_belongs_to_whom_it_should() {
    empty_network();
    let request = Request { owner: Some(77777), group: Some(88888), ..tap("rw0") };
    let open = |request: Request<'_>| request.open().unwrap().remove(0);
    open(request).persistence().unwrap().set(true).unwrap();
    let shown = ip("-details link show rw0");
    assert!(shown.contains("persist on"), "{shown}");
    // Numbers that no system has a name for.
    assert!(shown.contains(" user 77777 group 88888 "), "{shown}");
    // As it is.
    drop(tap("rw0").open().unwrap());
    assert!(ip("-brief link").contains("rw0"));
    open(tap("rw0")).persistence().unwrap().set(false).unwrap();
    assert!(!ip("-brief link").contains("rw0"));
}

#[test]
fn it_is_known_where_an_interface_is() {
    empty_network();
    let queues = tap("rw0").open().unwrap();
    assert!(queues[0].is_here().unwrap());
    empty_network();
    assert!(!queues[0].is_here().unwrap());
}

#[test]
fn the_kernel_takes_each_set_of_offloads() {
    use Offloads::{Checksum, None, Tcp, TcpEcn, Udp};
    empty_network();
    let queues = Request { most: TcpEcn, ..tap("rw0") }.open().unwrap();
    assert_eq!(queues[0].offloads(), TcpEcn);
    for offloads in [None, Checksum, Tcp, TcpEcn, Udp] {
        set_offloads(&queues[0].descriptor, offloads)
            .unwrap_or_else(|error| panic!("{offloads:?}: {error}; UDP needs Linux 6.2 or later"));
    }
}

/// A queue as another program would open it, before it starts us.
fn bare(name: &str, flags: libc::c_int) -> OwnedFd {
    crate::testing::queue(name, flags).unwrap()
}

const USUAL: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

#[test]
fn inherited_queues_are_adopted_without_privilege() {
    empty_network();
    let several = [(); 2].map(|()| bare("rw0", USUAL | libc::IFF_MULTI_QUEUE));
    // Privileges are a thread's own, as far as the kernel is concerned.
    // SAFETY: takes only numbers, and only this thread of a test is affected.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(result, 0);
    assert!(matches!(tap("rw1").open(), Err(TunError::NotPermitted(_) | TunError::Device(_))));

    let queues = adopt(several.into(), Kind::Tap, HEADER, Offloads::ALL).unwrap();
    assert_eq!(queues.len(), 2);
    for queue in queues {
        assert_eq!((queue.name(), queue.offloads()), ("rw0", Offloads::ALL));
        let mut size = 0;
        // SAFETY: TUNGETVNETHDRSZ takes an int.
        unsafe { ioctl(&queue.descriptor, libc::TUNGETVNETHDRSZ, &mut size) }.unwrap();
        assert_eq!(size, HEADER as libc::c_int);
        let flags = rustix::io::fcntl_getfd(&queue).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
        // It would wait for ever.
        let read = File::from(queue.descriptor).read(&mut [0; 2000]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn what_cannot_be_adopted_says_why_and_which_it_is() {
    empty_network();
    let null = || open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
    let unattached = || open("/dev/net/tun", OFlags::RDWR, Mode::empty()).unwrap();
    let refusal = |descriptors| {
        let AdoptError { index, error } =
            adopt(descriptors, Kind::Tap, HEADER, Offloads::ALL).unwrap_err();
        (index, error)
    };
    assert!(matches!(refusal(vec![null()]), (0, TunError::NotQueue(_))));
    assert!(matches!(refusal(vec![bare("a", USUAL), unattached()]), (1, TunError::NotQueue(_))));
    let headless = bare("b", libc::IFF_TAP | libc::IFF_NO_PI);
    assert!(matches!(refusal(vec![headless]), (0, TunError::NoHeader)));
    let tun = bare("c", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    let (0, TunError::WrongKind { wanted: Kind::Tap, found }) = refusal(vec![tun]) else {
        panic!("not of the wrong kind")
    };
    assert_eq!(found.as_deref(), Some("tun"));
    let (index, error) = refusal(vec![bare("d", USUAL), bare("e", USUAL)]);
    assert_eq!(index, 1);
    assert_eq!(error.to_string(), "of another interface, e, than the one before, d");
}
