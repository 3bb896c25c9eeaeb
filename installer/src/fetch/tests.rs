use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use event::{Event, Memory};
use image::encode::Cache;
use image::{Encoding, Image, Writer};

use super::*;

/// How a fake source behaves.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Good,
    /// Flips a byte of everything.
    Wrong,
    /// Answers so many times.
    Dies(usize),
    /// Has no image.
    Empty,
    /// Has the first pieces, so many.
    Has(usize),
}

struct Fake {
    image: Image,
    name: &'static str,
    manner: Manner,
    asked: AtomicUsize,
    read: Mutex<Vec<Range>>,
    /// Who is asked for something before this one is there.
    after: Option<Arc<Fake>>,
}

#[async_trait::async_trait]
impl Source for Fake {
    fn name(&self) -> String {
        self.name.into()
    }

    async fn connect(&self) -> Result<(), Refusal> {
        while self
            .after
            .as_ref()
            .is_some_and(|other| other.asked.load(Ordering::SeqCst) == 0)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn end(&self) -> Result<Vec<u8>, Refusal> {
        match self.manner {
            Manner::Empty => Err(Refusal::NotNow("it does not have the cluster image".into())),
            Manner::Wrong => Ok(vec![0; 1000]),
            _ => Ok(self.image.end().unwrap()),
        }
    }

    async fn have(&self, image: &str) -> Result<Have, Refusal> {
        assert_eq!(image, self.image.index_digest());
        match self.manner {
            Manner::Has(most) => {
                let bits = (0..64_usize).map(|bit| u64::from(bit < most) << bit);
                Ok(Have::Pieces(bits.sum::<u64>().to_le_bytes().into()))
            }
            _ => Ok(Have::All),
        }
    }

    async fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        tokio::task::yield_now().await;
        let count = self.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(range.image, self.image.index_digest());
        let stored = self
            .image
            .read_stored(&range.digest, range.offset, range.length);
        let mut bytes = stored.map_err(|error| Refusal::Refused(error.to_string()))?;
        match self.manner {
            Manner::Dies(after) if count >= after => return Err(Refusal::NotNow("gone".into())),
            Manner::Empty => return Err(Refusal::Refused("nothing here".into())),
            Manner::Wrong => bytes[range.length / 2] ^= 1,
            Manner::Good | Manner::Dies(_) | Manner::Has(_) => {}
        }
        self.read.lock().unwrap().push(range.clone());
        Ok(bytes)
    }
}

struct Site {
    directory: tempfile::TempDir,
    built: PathBuf,
    image: Image,
    sink: Arc<Memory>,
}

/// A raw blob of 9 MB and a compressed one of several frames.
fn site() -> Site {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    })
    .take(9 << 20)
    .collect();
    let put = |name: &str, bytes: &[u8]| host::atomic::write(&at(name), bytes, 0o644).unwrap();
    put("elf", b"program");
    put("raw", &noise);
    put("tar", &noise[1..]);
    let cache = Cache::open(at("cache")).unwrap();
    let built = at("built");
    let mut writer = Writer::create(&built, &at("elf"))
        .unwrap()
        .with_cache(cache);
    let root = writer.add_blob_bytes(b"root", "a/b").unwrap();
    for (name, encoding) in [("raw", Encoding::Raw), ("tar", Encoding::ZstdFrames)] {
        let digest = image::digest::sha256(&std::fs::read(at(name)).unwrap());
        writer
            .add_blob_file(&at(name), &digest, "a/b", encoding)
            .unwrap();
    }
    writer.finish(&root, "linux/amd64").unwrap();
    Site {
        image: Image::open(&built).unwrap(),
        built,
        directory,
        sink: Arc::default(),
    }
}

impl Site {
    fn source(&self, name: &'static str, manner: Manner) -> Arc<Fake> {
        self.source_after(name, manner, None)
    }

    fn source_after(
        &self,
        name: &'static str,
        manner: Manner,
        after: Option<Arc<Fake>>,
    ) -> Arc<Fake> {
        Arc::new(Fake {
            after,
            image: self.image.clone(),
            name,
            manner,
            asked: AtomicUsize::new(0),
            read: Mutex::default(),
        })
    }

    async fn fetch(&self, sources: &[Arc<Fake>]) -> Result<Vec<(String, u64)>, Error> {
        self.fetch_passed(sources, &[]).await
    }

    /// With others that get the image, too.
    async fn fetch_passed(
        &self,
        sources: &[Arc<Fake>],
        passing: &[Arc<Fake>],
    ) -> Result<Vec<(String, u64)>, Error> {
        let dynamic = |source: &Arc<Fake>| source.clone() as Arc<dyn Source>;
        let sources: Vec<_> = sources.iter().map(dynamic).collect();
        let (found, more) = mpsc::channel(9);
        for source in passing {
            found.try_send(dynamic(source)).unwrap();
        }
        let path = self.directory.path().join("fetched");
        let end = self.image.end().unwrap();
        let partial = Arc::new(Partial::open(&path, &end, self.image.root())?);
        partial.put_elf(&self.directory.path().join("elf"))?;
        let pieces = partial.missing(u64::MAX)?;
        let progress = Progress::new("image", self.sink.clone());
        fetch(&partial, pieces, &sources, more, &progress, &*self.sink).await
    }

    fn assert_fetched(&self) {
        let fetched = std::fs::read(self.directory.path().join("fetched")).unwrap();
        assert!(fetched == std::fs::read(&self.built).unwrap());
    }

    fn warnings(&self) -> Vec<String> {
        let warning = |event| match event {
            Event::Warning { message } => Some(message),
            _ => None,
        };
        self.sink.events().into_iter().filter_map(warning).collect()
    }

    /// What was told last of how far it is.
    fn progress(&self) -> (u64, Option<u64>) {
        let told = |event| match event {
            Event::Progress { done, total, .. } => Some((done, total)),
            _ => None,
        };
        self.sink
            .events()
            .into_iter()
            .filter_map(told)
            .next_back()
            .unwrap()
    }
}

#[tokio::test]
async fn all_sources_give_parts_and_nothing_comes_twice() {
    let site = site();
    let sources = [
        site.source("one", Manner::Good),
        site.source("two", Manner::Good),
    ];
    site.fetch(&sources).await.unwrap();
    site.assert_fetched();
    let mut read = BTreeMap::new();
    for source in &sources {
        let given = source.read.lock().unwrap();
        assert!(!given.is_empty(), "{} gave nothing", source.name);
        for range in given.iter() {
            *read
                .entry((range.digest.clone(), range.offset))
                .or_insert(0) += 1;
        }
    }
    assert!(read.values().all(|times| *times == 1), "{read:?}");
    let blobs: u64 = site.image.blobs().map(|blob| blob.length).sum();
    assert_eq!(site.progress(), (blobs, Some(blobs)));
    // Again there is nothing to do.
    let idle = [site.source("idle", Manner::Good)];
    site.fetch(&idle).await.unwrap();
    assert_eq!(idle[0].asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn who_gives_wrong_bytes_is_named_and_left_out() {
    let site = site();
    let sources = [
        site.source("liar", Manner::Wrong),
        site.source("honest", Manner::Good),
    ];
    site.fetch(&sources).await.unwrap();
    site.assert_fetched();
    let warnings = site.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("liar: gave wrong bytes"),
        "{warnings:?}"
    );
    let (done, total) = site.progress();
    assert_eq!(Some(done), total);

    let alone = self::site();
    let error = alone.fetch(&[alone.source("liar", Manner::Wrong)]).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("liar: gave wrong bytes"), "{error}");
    assert!(error.contains("copy the image's file"), "{error}");
}

#[tokio::test]
async fn what_one_that_died_did_not_give_another_does() {
    let site = site();
    let sources = [
        site.source("mortal", Manner::Dies(3)),
        site.source("good", Manner::Good),
        site.source("empty", Manner::Empty),
    ];
    site.fetch(&sources).await.unwrap();
    site.assert_fetched();
    assert_eq!(sources[0].read.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn what_has_come_before_all_died_is_not_fetched_again() {
    let site = site();
    let mortal = [site.source("mortal", Manner::Dies(3))];
    let error = site.fetch(&mortal).await.unwrap_err();
    assert!(matches!(error, Error::Nobody(_)), "{error}");
    let given: u64 = mortal[0]
        .read
        .lock()
        .unwrap()
        .iter()
        .map(|range| range.length as u64)
        .sum();
    assert!(given > 0);
    let good = [site.source("good", Manner::Good)];
    site.fetch(&good).await.unwrap();
    site.assert_fetched();
    let rest: u64 = good[0]
        .read
        .lock()
        .unwrap()
        .iter()
        .map(|range| range.length as u64)
        .sum();
    let all: u64 = site.image.blobs().map(|blob| blob.length).sum();
    assert_eq!(rest, all - given);
}

#[tokio::test]
async fn who_gets_the_image_too_gives_what_it_has_and_is_asked_for_nothing_else() {
    let site = site();
    let neighbour = site.source("neighbour", Manner::Has(3));
    let master = [site.source_after("master", Manner::Good, Some(neighbour.clone()))];
    let passing = [neighbour, site.source("gone", Manner::Dies(0))];
    let given = site.fetch_passed(&master, &passing).await.unwrap();
    site.assert_fetched();
    let of = |name: &str| given.iter().find(|(who, _)| who == name).unwrap().1;
    let read = passing[0].read.lock().unwrap();
    assert!((1..=3).contains(&read.len()), "{read:?}");
    let length: u64 = read.iter().map(|range| range.length as u64).sum();
    assert_eq!(of("neighbour"), length);
    let all: u64 = site.image.blobs().map(|blob| blob.length).sum();
    assert_eq!(of("master"), all - length);
    // To go is nothing to be told of.
    assert_eq!(site.warnings(), [""; 0]);
}

#[test]
fn what_fewest_others_have_is_asked_for_first() {
    let site = site();
    let end = site.image.end().unwrap();
    let partial = Partial::nameless(&end, site.image.root()).unwrap();
    let known = |have: Have| Known {
        source: site.source("any", Manner::Good),
        name: String::new(),
        passing: have != Have::All,
        have,
        given: 0,
        out: None,
    };
    let mut state = State {
        waiting: partial.missing(u64::MAX).unwrap(),
        running: 0,
        sources: vec![
            known(Have::All),
            known(Have::Pieces(vec![0b1011])),
            known(Have::Pieces(vec![0b1001])),
        ],
        last: Instant::now(),
        failed: None,
    };
    state.waiting.truncate(4);
    let take = |state: &mut State, source| state.take(source).map(|piece| piece.number);
    assert_eq!(take(&mut state, 0), Some(2));
    assert_eq!(take(&mut state, 0), Some(1));
    assert!(matches!(take(&mut state, 2), Some(0 | 3)));
    state.waiting.retain(|piece| piece.number == 1);
    assert_eq!(take(&mut state, 2), None);

    // Where nobody has all, one that has less is not waited for for ever.
    let late = state.last + PATIENCE * 2;
    assert!(!state.is_hopeless(late));
    state.sources[0].out = Some("it died".into());
    assert!(!state.is_hopeless(state.last));
    assert!(state.is_hopeless(late));
}
