use super::*;
use crate::clock::ManualClock;
use time::OffsetDateTime;

const REQUEST: B256 = B256::repeat_byte(1);
const NOW: i64 = 1_767_323_045;
/// An hour after the payments of these tests have expired.
const END: i64 = NOW + 300 + KEPT_S;

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(at(NOW)))
}

fn at(unix: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix).unwrap()
}

fn payment(number: u8) -> PaymentIdentity {
    PaymentIdentity {
        key: B256::repeat_byte(number),
        payer: None,
        valid_before: Some(NOW + 300),
    }
}

fn claim(purchases: &Purchases, number: u8) -> Result<ClaimedPurchase, ClaimError> {
    purchases.claim(payment(number), REQUEST, 300)
}

fn in_file(path: &Path) -> Result<Purchases, OwedFileError> {
    Purchases::in_file(path, clock())
}

fn outcome() -> SettleResponse {
    serde_json::from_value(
        serde_json::json!({"success": true, "transaction": "0x12", "network": "eip155:84532"}),
    )
    .unwrap()
}

#[tokio::test]
async fn payment_is_claimed_once_and_owed_for_one_request() {
    let purchases = Purchases::in_memory(clock());
    let first = claim(&purchases, 7).unwrap();
    assert_eq!(
        claim(&purchases, 7).unwrap_err(),
        ClaimError::AlreadyClaimed
    );
    let other_request = || purchases.claim(payment(7), B256::ZERO, 300);
    assert_eq!(other_request().unwrap_err(), ClaimError::AlreadyClaimed);
    first.keep_settling(None);
    drop(first);
    drop(other_request().unwrap());
    let first = claim(&purchases, 7).unwrap();
    assert!(
        first.was_settling,
        "an attempt binds the payment to no request"
    );
    first.record_settled(&outcome()).await.unwrap();
    drop(first);
    assert_eq!(other_request().unwrap_err(), ClaimError::OtherRequest);
    let again = claim(&purchases, 7).unwrap();
    assert_eq!(again.owed, Some(outcome()), "it was not delivered");
    again.record_delivered();
    drop(again);
    assert_eq!(claim(&purchases, 7).unwrap().owed, None);
}

#[tokio::test]
async fn calls_of_one_purchase_have_one_request_id() {
    let purchases = Purchases::in_memory(clock());
    let (first, other) = (claim(&purchases, 1).unwrap(), claim(&purchases, 2).unwrap());
    let id = first.request_id();
    assert!(id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic()));
    assert_ne!(other.request_id(), id);
    first.keep_settling(None);
    drop(first);
    let first = claim(&purchases, 1).unwrap();
    assert_eq!(first.request_id(), id, "after a lost answer");
    first.record_not_settled().await.unwrap();
    drop(first);
    let next = claim(&purchases, 1).unwrap();
    assert_ne!(next.request_id(), id, "a new purchase");
}

#[tokio::test]
async fn answer_that_breaks_off_is_served_again_three_times() {
    let purchases = Purchases::in_memory(clock());
    let first = claim(&purchases, 7).unwrap();
    first.record_settled(&outcome()).await.unwrap();
    first.begin_answer();
    drop(first);
    for time in 1..=3 {
        let again = claim(&purchases, 7).unwrap();
        assert!(again.owed.is_some(), "{time}");
        again.begin_answer();
    }
    assert!(claim(&purchases, 7).unwrap().owed.is_none());
    assert!(!purchases.knows(payment(7)));
}

#[tokio::test]
async fn failing_handler_and_waiting_buyer_use_up_no_answer() {
    let purchases = Purchases::in_memory(clock());
    let first = claim(&purchases, 7).unwrap();
    first.record_settled(&outcome()).await.unwrap();
    drop(first);
    for _ in 0..FAILED_MAX {
        let again = claim(&purchases, 7).unwrap();
        assert!(again.owed.is_some());
        again.begin_answer();
        again.record_failed();
    }
    let last = claim(&purchases, 7).unwrap();
    assert!(last.owed.is_some());
    last.record_failed();
    drop(last);
    assert!(
        claim(&purchases, 7).unwrap().owed.is_none(),
        "{FAILED_MAX} failures"
    );
}

#[tokio::test]
async fn purchases_end_an_hour_after_their_payment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let time = clock();
    let purchases = Purchases::in_file(&path, Arc::<ManualClock>::clone(&time)).unwrap();
    let owed = claim(&purchases, 1).unwrap();
    owed.record_settled(&outcome()).await.unwrap();
    let settling = claim(&purchases, 2).unwrap();
    settling.keep_settling(None);
    drop((owed, settling));
    time.set(at(END));
    assert!(claim(&purchases, 1).unwrap().owed.is_some());
    assert!(claim(&purchases, 2).unwrap().was_settling);
    time.set(at(END + 1));
    assert!(claim(&purchases, 1).unwrap().owed.is_none());
    assert!(!claim(&purchases, 2).unwrap().was_settling);
    drop(purchases);
    let late = Arc::new(ManualClock::new(at(END + 1)));
    let purchases = Purchases::in_file(&path, late).unwrap();
    assert!(!purchases.knows(payment(1)));
    // A payment that expires in a thousand years keeps its purchase for a day.
    let mut eternal = payment(3);
    eternal.valid_before = Some(i64::MAX);
    let claimed = purchases.claim(eternal, REQUEST, 300).unwrap();
    claimed.record_settled(&outcome()).await.unwrap();
    let until = purchases
        .state()
        .open
        .values()
        .map(|purchase| purchase.until)
        .max();
    assert_eq!(until, Some(END + 1 + VALIDITY_S_MAX + KEPT_S));
}

#[test]
fn attempts_push_no_owed_purchase_out() {
    let mut open = OpenPurchases::default();
    let key = |number: usize| PurchaseKey {
        payment: B256::from(alloy::primitives::U256::from(number)),
        request: REQUEST,
    };
    let purchase = |until, stage| Purchase {
        id: FixedBytes::ZERO,
        until,
        stage,
    };
    let owed = Stage::Owed {
        outcome: Box::new(outcome()),
        broken: 0,
        failed: 0,
    };
    open.insert(key(0), purchase(NOW + 1, owed), NOW);
    for number in 1..OWED_MAX + 100 {
        let settling = Stage::Settling { charge: None };
        open.insert(key(number), purchase(END, settling), NOW);
    }
    assert_eq!(open.open.len(), OWED_MAX);
    assert!(open.open.contains_key(&key(0)));
}

#[tokio::test]
async fn open_purchases_survive_reopening_with_a_torn_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let asked_as = {
        let purchases = in_file(&path).unwrap();
        let owed = claim(&purchases, 7).unwrap();
        owed.record_settling(None).await.unwrap();
        owed.record_settled(&outcome()).await.unwrap();
        let [delivered, settling] = [2, 3].map(|number| claim(&purchases, number).unwrap());
        delivered.record_settled(&outcome()).await.unwrap();
        delivered.record_delivered();
        let charge = Some("5".parse().unwrap());
        settling.record_settling(charge).await.unwrap();
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), b"{\"key\":\"0x").unwrap();
        settling.request_id()
    };
    let purchases = in_file(&path).unwrap();
    assert_eq!(claim(&purchases, 7).unwrap().owed, Some(outcome()));
    let [delivered, settling] = [2, 3].map(|number| claim(&purchases, number).unwrap());
    assert!(delivered.owed.is_none() && !delivered.was_settling);
    assert!(settling.owed.is_none() && settling.was_settling);
    assert_eq!(settling.earlier_charge, Some("5".parse().unwrap()));
    assert_eq!(settling.request_id(), asked_as, "the id is in the file");
}

#[test]
fn file_is_locked_and_foreign_content_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let first = in_file(&path).unwrap();
    let second = in_file(&path).unwrap_err();
    assert!(matches!(second, OwedFileError::InUse(_)), "{second}");
    drop(first);
    let foreign = folder.path().join("foreign");
    std::fs::write(&foreign, "hello\n").unwrap();
    let error = in_file(&foreign).unwrap_err();
    assert!(
        matches!(error, OwedFileError::Corrupt { line: 1, .. }),
        "{error}"
    );
}

#[test]
fn file_size_stays_bounded_by_open_purchases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let (file, _) = OwedFile::open(&path, NOW).unwrap();
    let purchase = Purchase {
        id: FixedBytes::ZERO,
        until: END,
        stage: Stage::Settling { charge: None },
    };
    let key = |number: u64| PurchaseKey {
        payment: B256::from(alloy::primitives::U256::from(number)),
        request: REQUEST,
    };
    let kept = key(u64::MAX);
    file.append(kept, Some(&purchase), false).unwrap();
    let mut longest = 0;
    for number in 0..30_000_u64 {
        let key = key(number);
        file.append(key, Some(&purchase), false).unwrap();
        file.append(key, None, false).unwrap();
        if number % 1_000 == 0 {
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
    }
    assert!(longest < 5_000_000, "{longest} bytes");
    drop(file);
    let (_, open) = OwedFile::open(&path, NOW).unwrap();
    assert_eq!(open.into_keys().collect::<Vec<_>>(), [kept]);
}

/// Runs in a child process of the next test, with a file size limit. Elsewhere it does nothing.
#[tokio::test]
async fn child_writes_until_file_limit_and_continues_with_room() {
    if !Path::new("file-size-limit").exists() {
        return;
    }
    let purchases = in_file(Path::new("owed.jsonl")).unwrap();
    let mut full = false;
    for number in 0..100 {
        let claim = claim(&purchases, number).unwrap();
        full = claim.record_settled(&outcome()).await.is_err();
        if full {
            break;
        }
    }
    assert!(full);
    let pid = std::process::id().to_string();
    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args(["--pid", &pid, "--fsize=unlimited"]);
    assert!(prlimit.status().unwrap().success());
    let claim = claim(&purchases, AFTER).unwrap();
    claim.record_settled(&outcome()).await.unwrap();
}

const AFTER: u8 = 0xee;

#[test]
fn torn_line_is_cut_off_before_the_next_append() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file-size-limit"), "").unwrap();
    let child = "seller::owed::tests::child_writes_until_file_limit_and_continues_with_room";
    let script = "trap '' XFSZ; ulimit -S -f 2; exec \"$0\" --exact \"$1\"";
    let status = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(child)
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let purchases = in_file(&folder.path().join("owed.jsonl")).unwrap();
    assert!(claim(&purchases, AFTER).unwrap().owed.is_some());
    assert!(claim(&purchases, 0).unwrap().owed.is_some());
}
