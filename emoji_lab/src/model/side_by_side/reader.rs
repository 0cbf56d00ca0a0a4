//! What reads the sequences that grow on the CPU.

use candle_core::Tensor;

use crate::error::Result;
use crate::host;
use crate::model::stream::{self, Streams};
use crate::model::{Gemma3, KvCache};
use crate::ops::lora_linear::{self, Weight};
use crate::ops::pool::on_pool;
use crate::ops::team::Team;

/// The model, as it reads sequences whose keys and values lie in caches of its own kind.
pub(super) trait Reader {
    type Cache;

    /// A cache of no tokens, with room for some.
    fn cache(&self, room: usize) -> Result<Self::Cache>;

    /// A cache of the same tokens, with room for `more`.
    fn with_room(&self, cache: &Self::Cache, more: usize) -> Result<Self::Cache>;

    /// How many tokens are in a cache.
    fn len(cache: &Self::Cache) -> usize;

    /// Reads the next tokens of each sequence, at least one of each.
    fn read(&mut self, unread: &[&[u32]], caches: &mut [Self::Cache]) -> Result<()>;

    /// The likeliest token that follows each sequence which was read, the lowest of equals; `None` where
    /// [`Self::logits`] has to be asked.
    fn likeliest(&mut self) -> Result<Option<Vec<u32>>>;

    /// The logits of what follows each sequence which was read, one behind the other, and how many each has.
    fn logits(&mut self) -> Result<(&[f32], usize)>;
}

/// A model of dense matrices, on threads that stay awake.
pub(super) struct ByStreams<'a, 't, 's> {
    gemma: &'a Gemma3,
    streams: Streams<'a>,
    /// The part of the head that logits are asked of; all of it where there is none.
    head: Option<Tensor>,
    team: &'t mut Team<'s>,
}

impl<'a, 't, 's> ByStreams<'a, 't, 's> {
    /// With the logits of the tokens `head` or of all.
    pub(super) fn new(
        gemma: &'a Gemma3,
        streams: Streams<'a>,
        head: Option<&[u32]>,
        team: &'t mut Team<'s>,
    ) -> Result<Self> {
        let head = head.map(|tokens| gemma.head_rows(tokens)).transpose()?;
        Ok(Self { gemma, streams, head, team })
    }
}

impl Reader for ByStreams<'_, '_, '_> {
    type Cache = stream::Cache;

    fn cache(&self, room: usize) -> Result<stream::Cache> {
        Ok(stream::Cache::new(self.gemma.config(), room))
    }

    fn with_room(&self, cache: &stream::Cache, more: usize) -> Result<stream::Cache> {
        Ok(cache.with_room(self.gemma.config(), more))
    }

    fn len(cache: &stream::Cache) -> usize {
        cache.len()
    }

    fn read(&mut self, unread: &[&[u32]], caches: &mut [stream::Cache]) -> Result<()> {
        self.streams.read(self.team, unread, caches)
    }

    fn likeliest(&mut self) -> Result<Option<Vec<u32>>> {
        match &self.head {
            Some(_) => Ok(None),
            None => self.streams.likeliest(self.team).map(Some),
        }
    }

    fn logits(&mut self) -> Result<(&[f32], usize)> {
        match &self.head {
            Some(head) => Ok((self.streams.logits_of(self.team, head)?, head.dims2()?.0)),
            None => Ok((self.streams.logits(self.team)?, self.gemma.config().vocab_size)),
        }
    }
}

/// Any model, by tensors.
pub(super) struct ByTensors<'a> {
    gemma: &'a Gemma3,
    head: Option<Weight>,
    hidden: Option<Tensor>,
    logits: Vec<f32>,
}

impl<'a> ByTensors<'a> {
    /// With the logits of the tokens `head` or of all.
    pub(super) fn new(gemma: &'a Gemma3, head: Option<&[u32]>) -> Result<Self> {
        let head = head.map(|tokens| gemma.head_rows(tokens)).transpose()?.map(Weight::from);
        Ok(Self { gemma, head, hidden: None, logits: vec![] })
    }
}

impl Reader for ByTensors<'_> {
    type Cache = KvCache;

    fn cache(&self, room: usize) -> Result<KvCache> {
        KvCache::new(self.gemma.config(), room)
    }

    fn with_room(&self, cache: &KvCache, more: usize) -> Result<KvCache> {
        let mut new = KvCache::new(self.gemma.config(), cache.len() + more)?;
        new.begin_with(cache)?;
        Ok(new)
    }

    fn len(cache: &KvCache) -> usize {
        cache.len()
    }

    fn read(&mut self, unread: &[&[u32]], caches: &mut [KvCache]) -> Result<()> {
        for (unread, cache) in unread.iter().zip(&mut *caches) {
            cache.make_room(unread.len())?;
        }
        self.hidden = Some(on_pool(|| self.gemma.read_rows(unread, caches))?);
        Ok(())
    }

    fn likeliest(&mut self) -> Result<Option<Vec<u32>>> {
        Ok(None)
    }

    fn logits(&mut self) -> Result<(&[f32], usize)> {
        let Some(hidden) = &self.hidden else { return Ok((&[], 0)) };
        let logits = on_pool(|| match &self.head {
            Some(head) => Ok(lora_linear::forward_by_row(hidden, head, None)?),
            None => self.gemma.logits(hidden),
        })?;
        self.logits = host::read(&logits, |logits| Ok(logits.to_vec()))?;
        Ok((&self.logits, logits.dims2()?.1))
    }
}
