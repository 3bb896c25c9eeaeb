use super::*;

#[test]
fn an_expired_token_is_none_and_goes_a_day_later() {
    let stored = |name: &str, seconds: i64| StoredToken {
        name: name.into(),
        text: format!("secret-of-{name}"),
        expires: jiff::Timestamp::from_second(seconds).unwrap(),
    };
    let all = [stored("old", 99), stored("new", 101), stored("ends", 100)];
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    let (good, over) = valid(&all, now);
    let secrets: Vec<_> = good.iter().map(|token| token.secret.as_str()).collect();
    assert_eq!(secrets, ["secret-of-new"]);
    assert_eq!(over, [""; 0]);
    let (good, over) = valid(&all, now + EXPIRED);
    assert!(good.is_empty());
    assert_eq!(over, ["old", "ends"]);
}

#[test]
fn who_gets_the_image_is_told_of_others_until_they_are_gone() {
    let at = |last: u8| IpAddr::from([10, 0, 0, last]);
    let (mut fetching, now) = (BTreeMap::new(), Instant::now());
    assert!(others(&mut fetching, at(1), now).is_empty());
    assert_eq!(others(&mut fetching, at(2), now), [at(1)]);
    let later = now + FETCHES / 2;
    assert_eq!(others(&mut fetching, at(1), later), [at(2)]);
    let end = now + FETCHES;
    assert_eq!(others(&mut fetching, at(3), end), [at(1)]);
}
