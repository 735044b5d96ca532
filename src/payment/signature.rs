//! Signatures: ECDSA recovery with libsecp256k1 (five times faster than pure Rust), and the ERC-6492 wrapper.

use alloy::primitives::{Address, B256, Bytes, keccak256};
use alloy::sol_types::SolValue;
use secp256k1::Message;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};

use crate::payment::Wallet;

/// The suffix of an ERC-6492 signature: `6492` sixteen times.
const WRAPPER_MAGIC: [u8; 32] =
    alloy::hex!("6492649264926492649264926492649264926492649264926492649264926492");

/// Half the order of the curve. Every signature has a second form with a larger `s`, which tokens reject.
const S_MAX: [u8; 32] =
    alloy::hex!("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0");

/// Normalises a 65-byte ECDSA signature to `v` 27 or 28. `None` unless `v` is 0, 1, 27 or 28 and `s` is in the lower half.
pub fn normalised(signature: &[u8]) -> Option<[u8; 65]> {
    let mut bytes: [u8; 65] = signature.try_into().ok()?;
    let (scalars, v) = bytes.split_at_mut(64);
    let (_, s) = scalars.split_at(32);
    let v = v.first_mut()?;
    if *s > S_MAX[..] {
        return None;
    }
    *v = match *v {
        0 | 27 => 27,
        1 | 28 => 28,
        _ => return None,
    };
    Some(bytes)
}

/// Recovers the account that made a [`normalised`] signature over `digest`.
pub fn recover_signer(signature: &[u8; 65], digest: B256) -> Option<Address> {
    let (scalars, v) = signature.split_at(64);
    let recovery = if v.first() == Some(&28) {
        RecoveryId::One
    } else {
        RecoveryId::Zero
    };
    let signature = RecoverableSignature::from_compact(scalars, recovery).ok()?;
    let key = signature.recover(Message::from_digest(digest.0)).ok()?;
    let point = key.serialize_uncompressed();
    let (_, coordinates) = point.split_at(1);
    Some(Address::from_slice(keccak256(coordinates).split_at(12).1))
}

/// Removes an ERC-6492 wrapper. Returns the inner signature and the wallet's deployment. Other signatures are returned unchanged.
///
/// # Errors
/// The signature ends like a wrapper, but the content cannot be decoded.
pub fn unwrap_erc6492(signature: &Bytes) -> Result<(Bytes, Option<Wallet>), MalformedWrapper> {
    let Some(body) = signature.strip_suffix(&WRAPPER_MAGIC) else {
        return Ok((signature.clone(), None));
    };
    let (factory, call, inner) =
        <(Address, Bytes, Bytes)>::abi_decode_params(body).map_err(|_| MalformedWrapper)?;
    let wallet = (!factory.is_zero()).then_some(Wallet { factory, call });
    Ok((inner, wallet))
}

/// The bytes before ERC-6492's magic suffix are not `(address, bytes, bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature ends as an ERC-6492 wrapper but does not hold (factory, call, signature)")]
pub struct MalformedWrapper;

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{address, b256, hex};

    const DIGEST: B256 = b256!("381b86af084fb5aae332949d22d96326ab5f699c65fe1a865807217d5ecb7c86");
    const SIGNATURE: [u8; 65] = hex!(
        "34810545ab6517f1d4b463d8748b29fca88d3216c54eadaf5fde914d5a837b6b05d4ea2c5f87f89b5235499dd0469e3c1861a25bb8ad56e25ea8693fb73327771b"
    );
    const PAYER: Address = address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A");

    #[test]
    fn published_vector_recovers_to_its_payer_for_each_v() {
        for v in [0, 27] {
            let mut raw = SIGNATURE;
            raw[64] = v;
            let signature = normalised(&raw).unwrap();
            assert_eq!(signature, SIGNATURE);
            assert_eq!(recover_signer(&signature, DIGEST), Some(PAYER));
        }
        let mut other = SIGNATURE;
        other[64] = 1;
        assert_ne!(
            recover_signer(&normalised(&other).unwrap(), DIGEST),
            Some(PAYER)
        );
    }

    #[test]
    fn permit2_vector_recovers_to_its_payer() {
        let exact = hex!(
            "d5d92faa68ee8a391c1e3ad721efcdfb48d3c73c39438d353afb0357d75a96736aeccac09d31d96a64bf06c04a6110700c57f808128e95f20fc000330b8d975c1c"
        );
        let digest = b256!("5ee092a968e1122befb3e982389460ecb49eea18ae8278f2b9856bb37856e9a3");
        assert_eq!(
            recover_signer(&normalised(&exact).unwrap(), digest),
            Some(PAYER)
        );
    }

    #[test]
    fn malleable_and_malformed_signatures_are_not_normalised() {
        let mut high = SIGNATURE;
        high[32..64].fill(0xff);
        assert_eq!(normalised(&high), None, "high s");
        let mut v = SIGNATURE;
        v[64] = 29;
        assert_eq!(normalised(&v), None, "v 29");
        assert_eq!(normalised(&SIGNATURE[..64]), None, "compact form");
        assert_eq!(normalised(&[]), None);
    }

    #[test]
    fn wrapper_decodes_to_factory_and_inner_signature() {
        let inner = Bytes::from_static(&[1, 2, 3]);
        let call = Bytes::from_static(&[9]);
        let mut wrapped = (PAYER, call.clone(), inner.clone()).abi_encode_params();
        wrapped.extend(WRAPPER_MAGIC);
        let wallet = Wallet {
            factory: PAYER,
            call,
        };
        assert_eq!(
            unwrap_erc6492(&wrapped.into()),
            Ok((inner.clone(), Some(wallet)))
        );
        assert_eq!(unwrap_erc6492(&inner), Ok((inner, None)));
        assert_eq!(unwrap_erc6492(&WRAPPER_MAGIC.into()), Err(MalformedWrapper));
    }
}
