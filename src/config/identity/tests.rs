use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;
use crate::document::Origin;

/// An issuer with one key; signs what it is given.
struct Issuer {
    key: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self {
            key: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap(),
        }
    }

    fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "use": "sig", "x": x}]})
    }

    fn oidc(&self) -> Oidc {
        let sited = |text: &str| Sited::new(text.to_owned(), Origin::Flag("--test"));
        Oidc {
            issuer: sited("https://login.example"),
            audience: sited("belljar"),
            jwks: sited("/etc/belljar/jwks.json"),
            keys: Keys::from_json(&self.jwks().to_string()).unwrap(),
            user_claim: "email".to_owned(),
            workspace_claim: "workspace".to_owned(),
            groups_claim: "groups".to_owned(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

const NOW: i64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(NOW as u64)
}

fn header() -> Value {
    json!({"alg": "EdDSA", "kid": "one"})
}

fn claims() -> Value {
    json!({
        "iss": "https://login.example", "aud": ["other", "belljar"], "sub": "u-1", "email": "alice@x", "workspace": "platform",
        "groups": ["agents"], "exp": NOW + 600, "iat": NOW - 5,
    })
}

#[test]
fn a_token_says_who_asks() {
    let issuer = Issuer::new();
    let found = token::login(&issuer.token(&header(), &claims()), &issuer.oidc(), now()).unwrap();
    let expected = Login {
        issuer: "https://login.example".to_owned(),
        subject: "u-1".to_owned(),
        name: Some("alice@x".to_owned()),
        workspace: Some("platform".to_owned()),
        groups: vec!["agents".to_owned()],
    };
    assert_eq!(found, expected);
}

#[test]
fn a_token_that_is_not_right_in_every_claim_says_nothing() {
    let issuer = Issuer::new();
    let cases = [
        (
            "iss",
            json!("https://evil.example"),
            "it was issued by \"https://evil.example\"",
        ),
        ("iss", Value::Null, "the claim \"iss\" is missing"),
        ("aud", json!("other"), "it is not for \"belljar\""),
        ("aud", json!(["other"]), "it is not for \"belljar\""),
        ("exp", json!(NOW - 61), "it expired"),
        ("exp", Value::Null, "the claim \"exp\" is missing"),
        ("exp", json!("never"), "the claim \"exp\" is missing or of another kind"),
        ("nbf", json!(NOW + 61), "it is not valid before"),
        ("iat", json!(NOW + 61), "it is not valid before"),
        ("sub", Value::Null, "the claim \"sub\" is missing"),
    ];
    for (claim, value, says) in cases {
        let mut claims = claims();
        claims[claim] = value;
        if claims[claim].is_null() {
            claims.as_object_mut().unwrap().remove(claim);
        }
        let error = token::login(&issuer.token(&header(), &claims), &issuer.oidc(), now()).unwrap_err();
        assert!(error.to_string().contains(says), "{claim}: {error}");
    }
    // Clocks that are a little apart.
    let mut close = claims();
    (close["exp"], close["iat"]) = (json!(NOW - 59), json!(NOW + 59));
    assert!(token::login(&issuer.token(&header(), &close), &issuer.oidc(), now()).is_ok());
}

#[test]
fn only_the_issuer_s_key_with_an_algorithm_of_its_kind_counts() {
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let oidc = issuer.oidc();
    let fails = |token: &str| token::login(token, &oidc, now()).unwrap_err();
    assert!(matches!(
        fails(&other.token(&header(), &claims())),
        TokenError::Signature
    ));
    for (header, algorithm) in [
        (json!({"alg": "none"}), "none"),
        (json!({"alg": "HS256", "kid": "one"}), "HS256"),
    ] {
        let error = fails(&issuer.token(&header, &claims()));
        assert!(
            matches!(&error, TokenError::Algorithm(found) if found == algorithm),
            "{error}"
        );
    }
    // The right key under another's name, as an RSA one, and with a condition that nobody here understands.
    for header in [
        json!({"alg": "EdDSA", "kid": "two"}),
        json!({"alg": "RS256", "kid": "one"}),
        json!({"alg": "EdDSA", "kid": "one", "crit": ["x"]}),
    ] {
        let error = fails(&issuer.token(&header, &claims()));
        assert!(matches!(error, TokenError::Signature), "{header}: {error}");
    }
    let token = issuer.token(&header(), &claims());
    let (message, _) = token.rsplit_once('.').unwrap();
    for token in [
        "",
        "a.b",
        "a.b.c",
        &format!("{message}."),
        &format!("{token}.x"),
        message,
    ] {
        assert!(token::login(token, &oidc, now()).is_err(), "{token}");
    }
}

#[test]
fn keys_of_the_p256_curve_count_too() {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let point = key.public_key().as_ref();
    let (x, y) = (
        URL_SAFE_NO_PAD.encode(&point[1..33]),
        URL_SAFE_NO_PAD.encode(&point[33..]),
    );
    let jwks = json!({"keys": [
        {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "EC", "crv": "P-256", "use": "enc", "x": x, "y": y},
        {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y},
    ]});
    let oidc = Oidc {
        keys: Keys::from_json(&jwks.to_string()).unwrap(),
        ..Issuer::new().oidc()
    };
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&json!({"alg": "ES256"})), part(&claims()));
    let signature = key.sign(&random, message.as_bytes()).unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
    assert_eq!(token::login(&token, &oidc, now()).unwrap().subject, "u-1");
}

#[test]
fn an_rsa_token_is_checked_by_modulus_and_exponent() {
    // The example of RFC 7515, appendix A.2: its key, header and claims, and the signature over them.
    let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let mut oidc = Issuer::new().oidc();
    oidc.keys = Keys::from_json(&json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]}).to_string()).unwrap();
    // The signature holds; what is left to say is that the example is not for belljar.
    let error = token::login(token, &oidc, now()).unwrap_err();
    assert!(matches!(error, TokenError::Issuer { .. }), "{error}");
    let forged = token.replacen("cC4", "cC5", 1);
    assert!(matches!(
        token::login(&forged, &oidc, now()),
        Err(TokenError::Signature)
    ));
}

#[test]
fn a_set_without_a_key_that_can_sign_is_a_fault() {
    for text in [
        "",
        "{}",
        "{\"keys\": []}",
        "{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\"}]}",
    ] {
        assert!(Keys::from_json(text).is_err(), "{text}");
    }
}
