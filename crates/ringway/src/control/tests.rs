use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Blocking;
use std::time::Instant;

use tokio::task::{JoinHandle, spawn_blocking};

use super::*;

/// More than anything here takes, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A control socket that answers each look with this version.
fn serve_at(path: &Path, version: String) -> JoinHandle<io::Result<()>> {
    let listener = listen_at(path, MODE, None).unwrap();
    let report = Report { version, ..Report::default() };
    tokio::spawn(serve(listener, move |_| {
        let report = Box::new(report.clone());
        async { Answer::Stats(report) }
    }))
}

fn connected(path: &Path) -> Blocking {
    let stream = Blocking::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// What is answered to this, until the switch closes, or all is said.
async fn answers(path: &Path, text: Vec<u8>) -> Vec<String> {
    let mut stream = connected(path);
    let said = spawn_blocking(move || {
        stream.write_all(&text).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        BufReader::new(stream).lines().map_while(Result::ok).collect()
    });
    said.await.unwrap()
}

#[test]
fn a_switch_that_comes_second_has_no_control_socket_unless_it_is_given_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // Nobody can make one there.
    let nowhere = path("no/such/directory/c.sock");
    let first = open_first(&[nowhere.clone(), path("own"), path("run")]).unwrap();
    assert!(path("own").exists() && !path("run").exists());
    assert!(open_first(&[nowhere, path("own"), path("run")]).is_none());
    assert!(!path("run").exists(), "nobody would ask there");
    drop(first);
    assert!(open_first(&[path("own"), path("run")]).is_some());
}

const STATS: &str = r#"{"ringway":1,"request":"stats"}"#;

#[tokio::test]
async fn a_request_is_a_line_and_so_is_its_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    let server = serve_at(&path, "7".to_owned());
    let said = answers(&path, format!("{STATS}\n{STATS}\n").into()).await;
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[1].starts_with(r#"{"ringway":1,"stats":{"version":"7","#), "{}", said[1]);
    let Answer::Stats(report) = ask(Some(&path), Request::Stats).await.unwrap() else {
        panic!("it answers with a report");
    };
    assert_eq!(report.version, "7");
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "the socket goes with its server");
    let error = format!("{:#}", ask(Some(&path), Request::Stats).await.unwrap_err());
    assert!(error.starts_with(&format!("no switch listens at {}", path.display())), "{error}");
}

#[test]
fn where_a_switch_listens_is_said_only_where_none_does() {
    let wrong = |kind| (PathBuf::from("/run/c.sock"), io::Error::from(kind));
    let anothers =
        "/run/c.sock belongs to another user: ask as the user that runs the switch, or as root";
    assert_eq!(not_connected(&[wrong(io::ErrorKind::PermissionDenied)]), anothers);
    let both =
        not_connected(&[io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound].map(wrong));
    let expected = format!("{anothers}, and no switch listens at /run/c.sock; a switch says with ");
    assert!(both.starts_with(&expected), "{both}");
}

#[tokio::test]
async fn who_does_not_answer_is_said_to_be_slow() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    // Nobody accepts.
    let _listener = listen_at(&path, MODE, None).unwrap();
    let error = format!("{:#}", ask(Some(&path), Request::Stats).await.unwrap_err());
    let path = path.display();
    assert_eq!(error, format!("cannot ask the switch at {path}: it has not answered within 10 s"));
}

#[tokio::test]
async fn what_is_no_request_is_told_so_and_the_next_one_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    let _server = serve_at(&path, String::new());
    for (wrong, why) in [
        ("hello", "not a request: expected value"),
        ("", "not a request: EOF"),
        ("\u{0}\u{ff}", "not a request"),
        ("{}", "missing field `ringway`"),
        (r#"{"ringway":1}"#, "missing field `request`"),
        (r#"{"ringway":1,"request":"halt"}"#, "unknown variant `halt`, expected `stats`"),
        (r#"{"ringway":2,"request":"anything"}"#, "this switch speaks version 1, and not 2"),
        (&"[".repeat(1000), "not a request"),
    ] {
        let said = answers(&path, format!("{wrong}\n{STATS}\n").into()).await;
        let [error, stats] = &said[..] else { panic!("{wrong:?}: {said:?}") };
        let error = read_answer(error.as_bytes()).unwrap();
        assert!(matches!(&error, Answer::Error(error) if error.contains(why)), "{error:?}");
        assert!(stats.contains(r#""stats":"#), "{stats}");
    }
    // Half of a line is none.
    assert_eq!(answers(&path, STATS.into()).await, [""; 0]);
}

#[tokio::test]
async fn a_line_has_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    let _server = serve_at(&path, String::new());
    let padded = |length: usize| {
        let mut line = STATS.as_bytes().to_vec();
        line.resize(length, b' ');
        [&line[..], b"\n"].concat()
    };
    let said = answers(&path, padded(REQUEST_LIMIT)).await;
    assert!(said[0].contains("stats"), "{said:?}");
    // It is answered, and nothing more is heard of him.
    let mut stream = connected(&path);
    let answer = spawn_blocking(move || {
        // It may hang up before all of it was sent.
        let _ = stream.write_all(&padded(REQUEST_LIMIT + 1));
        let _ = stream.write_all(format!("{STATS}\n").as_bytes());
        BufReader::new(stream).lines().map_while(Result::ok).collect::<Vec<_>>()
    });
    let said = answer.await.unwrap();
    assert_eq!(said, [r#"{"ringway":1,"error":"a line of more than 65536 bytes"}"#]);
}

#[tokio::test]
async fn who_does_not_read_holds_nobody_up_and_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    // More than a socket holds, and no more than a busy machine writes soon.
    const LONG: usize = 1 << 20;
    let _server = serve_at(&path, "x".repeat(LONG));
    let slow = || {
        let mut stream = connected(&path);
        writeln!(stream, "{STATS}").unwrap();
        stream
    };
    let look = async || match timeout(LIMIT, ask(Some(&path), Request::Stats)).await {
        Ok(Ok(Answer::Stats(report))) => report.version.len(),
        other => panic!("{other:?} and no report"),
    };
    // One less than there may be.
    let _some: Vec<_> = (1..CONNECTIONS).map(|_| slow()).collect();
    let start = Instant::now();
    assert_eq!(look().await, LONG);
    assert!(start.elapsed() < PATIENCE, "it waited for the slow ones");
    // As many as there may be: one has to be let go of first.
    let _last = slow();
    assert_eq!(look().await, LONG);
}

#[tokio::test]
async fn more_than_a_few_wait_until_others_leave() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    let _server = serve_at(&path, String::new());
    let idle: Vec<_> = (0..CONNECTIONS).map(|_| connected(&path)).collect();
    let asked = {
        let path = path.clone();
        tokio::spawn(async move { ask(Some(&path), Request::Stats).await })
    };
    sleep(PAUSE).await;
    assert!(!asked.is_finished(), "{CONNECTIONS} are here already");
    drop(idle);
    assert!(matches!(asked.await.unwrap().unwrap(), Answer::Stats(_)));
}

#[tokio::test]
async fn another_version_is_said_to_be_one() {
    let answer = read_answer(br#"{"ringway":2,"something":"else"}"#).unwrap_err();
    assert!(answer.to_string().starts_with("it speaks version 2 of the control"), "{answer}");
    let answer = read_answer(b"HTTP/1.1 400 Bad Request").unwrap_err();
    assert_eq!(answer.to_string(), "it is not a switch of ours");
}

#[test]
fn one_that_was_asked_for_has_to_be_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock");
    let wanted = ControlSocket::At(path.clone());
    let first = open(&wanted).unwrap().unwrap();
    let error = format!("{:#}", open(&wanted).unwrap_err());
    let expected = format!(
        "cannot make the control socket {}: in use by process {} (",
        path.display(),
        std::process::id()
    );
    assert!(error.starts_with(&expected), "{error}");
    drop(first);
    assert!(open(&ControlSocket::Off).unwrap().is_none());
    assert!(open(&ControlSocket::At("/nonexistent/c.sock".into())).is_err());
}
