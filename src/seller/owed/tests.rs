use super::*;

const REQUEST: B256 = B256::repeat_byte(1);
const KEY: PurchaseKey = PurchaseKey(B256::repeat_byte(7));

fn outcome() -> SettleResponse {
    serde_json::from_value(
        serde_json::json!({"success": true, "transaction": "0x12", "network": "eip155:84532"}),
    )
    .unwrap()
}

#[tokio::test]
async fn payment_is_claimed_once_and_for_one_request() {
    let purchases = Purchases::default();
    let claim = purchases.claim(KEY, REQUEST).unwrap();
    let error = purchases.claim(KEY, REQUEST).unwrap_err();
    assert_eq!(error, ClaimError::AlreadyClaimed);
    claim.record_settled(&outcome()).await.unwrap();
    drop(claim);
    let other = purchases.claim(KEY, B256::ZERO).unwrap_err();
    assert_eq!(other, ClaimError::OtherRequest);
    let again = purchases.claim(KEY, REQUEST).unwrap();
    assert_eq!(again.owed, Some(outcome()), "it was not delivered");
    again.record_delivered();
    drop(again);
    assert_eq!(purchases.claim(KEY, REQUEST).unwrap().owed, None);
}

#[tokio::test]
async fn owed_purchases_survive_reopening_with_a_torn_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let others = [2_u8, 3].map(|byte| PurchaseKey(B256::repeat_byte(byte)));
    {
        let purchases = Purchases::in_file(&path).unwrap();
        let owed = purchases.claim(KEY, REQUEST).unwrap();
        owed.record_settling().await.unwrap();
        owed.record_settled(&outcome()).await.unwrap();
        let [delivered, settling] = others.map(|key| purchases.claim(key, REQUEST).unwrap());
        delivered.record_settled(&outcome()).await.unwrap();
        delivered.record_delivered();
        settling.record_settling().await.unwrap();
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), b"{\"key\":\"0x").unwrap();
    }
    let purchases = Purchases::in_file(&path).unwrap();
    assert_eq!(purchases.claim(KEY, REQUEST).unwrap().owed, Some(outcome()));
    let [delivered, settling] = others.map(|key| purchases.claim(key, REQUEST).unwrap());
    assert!(delivered.owed.is_none() && !delivered.was_settling);
    assert!(settling.owed.is_none() && settling.was_settling);
}

#[test]
fn file_is_locked_and_foreign_content_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let first = Purchases::in_file(&path).unwrap();
    let second = Purchases::in_file(&path).unwrap_err();
    assert!(matches!(second, OwedFileError::InUse(_)), "{second}");
    drop(first);
    let foreign = folder.path().join("foreign");
    std::fs::write(&foreign, "hello\n").unwrap();
    let error = Purchases::in_file(&foreign).unwrap_err();
    assert!(
        matches!(error, OwedFileError::Corrupt { line: 1, .. }),
        "{error}"
    );
}

#[test]
fn file_size_stays_bounded_by_open_purchases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let (file, _) = OwedFile::open(&path).unwrap();
    let purchase = Purchase {
        request: REQUEST,
        stage: Stage::Settling,
    };
    file.append(KEY, Some(&purchase), false).unwrap();
    let mut longest = 0;
    for number in 0..30_000_u64 {
        let key = PurchaseKey(B256::from(alloy::primitives::U256::from(number)));
        file.append(key, Some(&purchase), false).unwrap();
        file.append(key, None, false).unwrap();
        if number % 1_000 == 0 {
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
    }
    assert!(longest < 5_000_000, "{longest} bytes");
    drop(file);
    let (_, open) = OwedFile::open(&path).unwrap();
    assert_eq!(open.into_keys().collect::<Vec<_>>(), [KEY]);
}

/// Runs in a child process of the next test, with a file size limit. Elsewhere it does nothing.
#[tokio::test]
async fn child_writes_until_file_limit_and_continues_with_room() {
    if !Path::new("file-size-limit").exists() {
        return;
    }
    let purchases = Purchases::in_file(Path::new("owed.jsonl")).unwrap();
    let mut full = false;
    for number in 0..100 {
        let key = PurchaseKey(B256::repeat_byte(number));
        let claim = purchases.claim(key, REQUEST).unwrap();
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
    let claim = purchases.claim(KEY_AFTER, REQUEST).unwrap();
    claim.record_settled(&outcome()).await.unwrap();
}

const KEY_AFTER: PurchaseKey = PurchaseKey(B256::repeat_byte(0xee));

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
    let purchases = Purchases::in_file(&folder.path().join("owed.jsonl")).unwrap();
    assert!(purchases.claim(KEY_AFTER, REQUEST).unwrap().owed.is_some());
    let first = PurchaseKey(B256::repeat_byte(0));
    assert!(purchases.claim(first, REQUEST).unwrap().owed.is_some());
}
