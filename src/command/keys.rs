//! `x402d keys`: the keys of callers. Works on the database of the configuration, whether or not the service runs.

mod view;

use std::time::Duration;

use alloy::primitives::{Address, FixedBytes};
use clap::{Args, Subcommand};
use serde_json::json;

use self::view::{KeyView, table};
use crate::clock::{Clock as _, SystemClock};
use crate::command::database::LedgerOptions;
use crate::command::shown::parse_network;
use crate::command::{CommandError, say};
use crate::ledger::{Created, Ledger, StoredKey};
use crate::payment::{Key, KeyId, PresentedKey, Scope, key_name, native_wei};
use crate::protocol::field::parse_address;
use crate::protocol::{Amount, Network};

/// How much of an unknown name is shown, in characters.
const NAME_CHARACTERS_MAX: usize = 64;
/// The longest time for which the secret before a rotation can stay good: a month.
const KEEP_MAX: Duration = Duration::from_hours(31 * 24);

#[derive(Debug, Args)]
pub(super) struct KeysOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and show it, this once.
    Create(NewKey),
    /// List the keys that are good.
    List {
        /// Also those that are revoked or expired.
        #[arg(long)]
        all: bool,
    },
    /// Show a key, without its secret.
    Show {
        /// Its id, or its name.
        key: String,
    },
    /// Revoke a key. It is refused everywhere within five seconds.
    Revoke {
        /// Its id, or its name.
        key: String,
    },
    /// Give a key a new secret and show it, this once. The old one stays good for a time.
    Rotate {
        /// Its id, or its name.
        key: String,
        /// How long the old secret stays good, such as 0s, 12h or 7d.
        #[arg(long, value_name = "TIME", default_value = "1d", value_parser = keep_time)]
        keep: Duration,
    },
}

/// What a new key allows.
#[derive(Debug, Args)]
struct NewKey {
    /// Your name for it, such as the seller's.
    #[arg(value_parser = key_name)]
    name: String,
    /// Who may be paid, and whose payments may be read. Repeat it for several.
    #[arg(long = "payee", value_name = "ADDRESS", value_parser = parse_address)]
    payees: Vec<Address>,
    /// Where, such as base or eip155:8453; every network unless given. Repeat it for several.
    #[arg(long = "network", value_name = "NETWORK", value_parser = parse_network)]
    networks: Vec<Network>,
    /// settle: verify, settle and sessions. history: read payments. admin: everything that the operator may, alone and without a payee.
    #[arg(long = "scope", value_name = "SCOPES", value_delimiter = ',', default_value = "settle", value_parser = scope)]
    scopes: Vec<Scope>,
    /// What its payments may cost on each network in 24 hours, such as 0.01eth, 5gwei or 1000wei; no limit unless given.
    #[arg(long, value_name = "AMOUNT", value_parser = native_wei)]
    gas_per_day: Option<Amount>,
    /// After which time it is not good any more, such as 90d or 12h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
}

pub(super) async fn run(options: KeysOptions) -> Result<(), CommandError> {
    let KeysOptions { ledger, command } = options;
    let json = ledger.json;
    let is_new = matches!(command, KeysCommand::Create(_));
    let work = async move |ledger: &Ledger| match command {
        KeysCommand::Create(new) => create(ledger, new, json).await,
        KeysCommand::List { all } => list(ledger, all, json).await,
        KeysCommand::Show { key } => show(ledger, &key, json).await,
        KeysCommand::Revoke { key } => revoke(ledger, &key, json).await,
        KeysCommand::Rotate { key, keep } => rotate(ledger, (&key, keep), json).await,
    };
    if is_new {
        // The first key can be made before the service has ever run.
        ledger.on_ledger_or_new(work).await
    } else {
        ledger.on_ledger(work).await
    }
}

async fn create(ledger: &Ledger, new: NewKey, json: bool) -> Result<(), CommandError> {
    let is_admin = new.scopes.contains(&Scope::Admin);
    let is_limited =
        !new.payees.is_empty() || !new.networks.is_empty() || new.gas_per_day.is_some();
    if is_admin && (is_limited || new.scopes.len() > 1) {
        return Err("--scope admin: it is the operator's, and takes no other scope, payee, network or gas limit".into());
    }
    if !is_admin && new.payees.is_empty() {
        return Err(
            "--payee: expected the address that this seller is paid at; repeat it for several"
                .into(),
        );
    }
    let now = SystemClock.now();
    let expires_at = new.expires.map(|time| {
        let time = time::Duration::try_from(time).ok();
        time.and_then(|time| now.checked_add(time))
            .ok_or("--expires: the time is too far away")
    });
    let (text, presented) = PresentedKey::new(KeyId::from_entropy(entropy()?), entropy()?);
    let key = Key {
        id: presented.id,
        name: new.name,
        scopes: new.scopes,
        payees: new.payees,
        networks: new.networks,
        gas_wei_per_day: new.gas_per_day,
        created_at: now,
        expires_at: expires_at.transpose()?,
        revoked_at: None,
    };
    if ledger.create_key(&key, &presented).await? == Created::NameTaken {
        let why = "a key that is good has this name already: take another one, or revoke or rotate that key";
        return Err(format!("{}: {why}", key.name).into());
    }
    say_key(&text, &KeyView::new(&key, None, now), json);
    if is_admin && !json {
        say("From now on callers on the loopback address are not the operator any more.");
    }
    Ok(())
}

/// Shows a key with its secret: nothing else ever does.
fn say_key(text: &str, view: &KeyView, json: bool) {
    if json {
        say(&json!({ "key": text, "about": view }).to_string());
        return;
    }
    say(text);
    say(
        "It is shown only now. It is sent as `Authorization: Bearer …` or as `X-API-Key: …`, and is good within seconds.",
    );
}

async fn list(ledger: &Ledger, all: bool, json: bool) -> Result<(), CommandError> {
    let now = SystemClock.now();
    let mut keys = ledger.keys().await?;
    keys.retain(|stored| all || stored.key.is_live(now));
    let views: Vec<_> = keys.iter().map(view).collect();
    say(&if json {
        json!({ "keys": views }).to_string()
    } else {
        table(&views)
    });
    Ok(())
}

async fn show(ledger: &Ledger, key: &str, json: bool) -> Result<(), CommandError> {
    let view = view(&find(ledger, key).await?);
    say(&if json {
        serde_json::to_string(&view)?
    } else {
        view.lines()
    });
    Ok(())
}

async fn revoke(ledger: &Ledger, key: &str, json: bool) -> Result<(), CommandError> {
    let id = find(ledger, key).await?.key.id;
    if !ledger.revoke_key(id).await? {
        return Err(format!("{id} is revoked already").into());
    }
    if json {
        return show(ledger, id.as_str(), json).await;
    }
    say(&format!(
        "{id} is revoked; every process refuses it within five seconds"
    ));
    Ok(())
}

async fn rotate(
    ledger: &Ledger,
    (key, keep): (&str, Duration),
    json: bool,
) -> Result<(), CommandError> {
    let id = find(ledger, key).await?.key.id;
    let (text, presented) = PresentedKey::new(id, entropy()?);
    let seconds = u32::try_from(keep.as_secs())?;
    if ledger.rotate_key(&presented, seconds).await?.is_none() {
        return Err(format!("{id} is revoked or expired: create another key").into());
    }
    let view = view(&find(ledger, id.as_str()).await?);
    say_key(&text, &view, json);
    if !json {
        say(&format!(
            "The old secret is good for {} more.",
            humantime::format_duration(Duration::from_secs(keep.as_secs()))
        ));
    }
    Ok(())
}

fn view(stored: &StoredKey) -> KeyView {
    let earlier_until = stored.earlier.map(|(_, until)| until);
    KeyView::new(&stored.key, earlier_until, SystemClock.now())
}

/// The key with this id, or the one that is not revoked with this name.
async fn find(ledger: &Ledger, wanted: &str) -> Result<StoredKey, CommandError> {
    let keys = ledger.keys().await?;
    let is_wanted = |stored: &StoredKey| {
        let is_named = stored.key.revoked_at.is_none() && stored.key.name == wanted;
        is_named || stored.key.id.as_str() == wanted
    };
    let found = keys.into_iter().find(is_wanted);
    found.ok_or_else(|| {
        // Somebody may have pasted the whole key.
        let shown = PresentedKey::parse(wanted).map(|key| key.id.to_string());
        let shown = shown.unwrap_or_else(|| wanted.chars().take(NAME_CHARACTERS_MAX).collect());
        format!("there is no key {shown:?}: expected the id or the name of one, as `x402d keys list --all` shows them").into()
    })
}

fn entropy<const N: usize>() -> Result<[u8; N], CommandError> {
    let bytes = FixedBytes::<N>::try_random();
    bytes
        .map(|bytes| bytes.0)
        .map_err(|error| format!("the system provides no randomness: {error}").into())
}

fn scope(text: &str) -> Result<Scope, String> {
    text.parse()
}

fn keep_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_bounded = time <= KEEP_MAX;
    is_bounded
        .then_some(time)
        .ok_or_else(|| "expected 31 days at most".to_owned())
}
