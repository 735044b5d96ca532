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
async fn a_payment_is_in_one_hand_and_for_one_request() {
    let purchases = Purchases::default();
    let serving = purchases.take(KEY, REQUEST).unwrap();
    assert_eq!(purchases.take(KEY, REQUEST).unwrap_err(), Refused::InHand);
    serving.settled(&outcome()).await.unwrap();
    drop(serving);
    let other = purchases.take(KEY, B256::ZERO).unwrap_err();
    assert_eq!(other, Refused::OtherRequest);
    let again = purchases.take(KEY, REQUEST).unwrap();
    assert_eq!(again.owed, Some(outcome()), "it was not delivered");
    again.delivered();
    drop(again);
    assert_eq!(purchases.take(KEY, REQUEST).unwrap().owed, None);
}

#[tokio::test]
async fn what_is_owed_survives_in_a_file_and_a_torn_last_line_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let others = [2_u8, 3].map(|byte| PurchaseKey(B256::repeat_byte(byte)));
    {
        let purchases = Purchases::in_file(&path).unwrap();
        let owed = purchases.take(KEY, REQUEST).unwrap();
        owed.settling().await.unwrap();
        owed.settled(&outcome()).await.unwrap();
        let [delivered, settling] = others.map(|key| purchases.take(key, REQUEST).unwrap());
        delivered.settled(&outcome()).await.unwrap();
        delivered.delivered();
        settling.settling().await.unwrap();
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), b"{\"key\":\"0x").unwrap();
    }
    let purchases = Purchases::in_file(&path).unwrap();
    assert_eq!(purchases.take(KEY, REQUEST).unwrap().owed, Some(outcome()));
    let [delivered, settling] = others.map(|key| purchases.take(key, REQUEST).unwrap());
    assert!(delivered.owed.is_none() && !delivered.was_settling);
    assert!(settling.owed.is_none() && settling.was_settling);
}

#[test]
fn a_file_has_one_seller_and_holds_purchases_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let first = Purchases::in_file(&path).unwrap();
    let second = Purchases::in_file(&path).unwrap_err();
    assert!(matches!(second, OwedFileError::InUse(_)), "{second}");
    drop(first);
    let strange = folder.path().join("strange");
    std::fs::write(&strange, "hello\n").unwrap();
    let error = Purchases::in_file(&strange).unwrap_err();
    assert!(
        matches!(error, OwedFileError::Strange { line: 1, .. }),
        "{error}"
    );
}

#[test]
fn a_file_does_not_grow_by_what_is_delivered() {
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

/// Runs in a child of the next test, which may write small files only; elsewhere it does nothing.
#[tokio::test]
async fn a_child_writes_until_its_disk_is_full_and_goes_on_when_there_is_room() {
    if !Path::new("only-small-files").exists() {
        return;
    }
    let purchases = Purchases::in_file(Path::new("owed.jsonl")).unwrap();
    let mut full = false;
    for number in 0..100 {
        let key = PurchaseKey(B256::repeat_byte(number));
        let serving = purchases.take(key, REQUEST).unwrap();
        full = serving.settled(&outcome()).await.is_err();
        if full {
            break;
        }
    }
    assert!(full);
    let pid = std::process::id().to_string();
    let mut room = std::process::Command::new("prlimit");
    room.args(["--pid", &pid, "--fsize=unlimited"]);
    assert!(room.status().unwrap().success());
    let serving = purchases.take(KEY_AFTER, REQUEST).unwrap();
    serving.settled(&outcome()).await.unwrap();
}

const KEY_AFTER: PurchaseKey = PurchaseKey(B256::repeat_byte(0xee));

#[test]
fn a_line_that_a_full_disk_has_cut_is_taken_back_before_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("only-small-files"), "").unwrap();
    let child =
        "seller::owed::tests::a_child_writes_until_its_disk_is_full_and_goes_on_when_there_is_room";
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
    assert!(purchases.take(KEY_AFTER, REQUEST).unwrap().owed.is_some());
    let first = PurchaseKey(B256::repeat_byte(0));
    assert!(purchases.take(first, REQUEST).unwrap().owed.is_some());
}
