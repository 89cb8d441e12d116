//! Puts what is asked for side by side into as few requests as it takes.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How long the first one waits for others: little beside the way to a store and back.
const MOMENT: Duration = Duration::from_millis(1);

/// Questions on their way to one store as one identity.
pub(crate) struct Gather<Q, A> {
    waiting: Mutex<Vec<(Q, oneshot::Sender<A>)>>,
}

impl<Q, A> Default for Gather<Q, A> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
        }
    }
}

impl<Q, A> Gather<Q, A>
where
    Q: Clone + Eq + Hash + Send + 'static,
    A: Clone + Send + 'static,
{
    /// Asks `question` together with everybody else's of this moment. `answer` is called by one of
    /// them, with each question once; what it leaves out has no answer.
    ///
    /// Whoever stops waiting leaves the request to the others.
    pub(crate) async fn ask<F>(
        this: &Arc<Self>,
        question: Q,
        answer: impl FnOnce(Vec<Q>) -> F + Send + 'static,
    ) -> Option<A>
    where
        F: Future<Output = HashMap<Q, A>> + Send,
    {
        let (sender, receiver) = oneshot::channel();
        let is_first = {
            let mut waiting = lock(&this.waiting);
            waiting.push((question, sender));
            waiting.len() == 1
        };
        if is_first {
            let this = this.clone();
            tokio::spawn(async move {
                tokio::time::sleep(MOMENT).await;
                let waiting = mem::take(&mut *lock(&this.waiting));
                let mut questions = Vec::with_capacity(waiting.len());
                for (question, _) in &waiting {
                    if !questions.contains(question) {
                        questions.push(question.clone());
                    }
                }
                let answers = answer(questions).await;
                for (question, sender) in waiting {
                    if let Some(answer) = answers.get(&question) {
                        // Nobody may be waiting any more.
                        let _ = sender.send(answer.clone());
                    }
                }
            });
        }
        receiver.await.ok()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    #[tokio::test(start_paused = true)]
    async fn questions_of_a_moment_are_one_request_and_a_dropped_one_harms_nobody() {
        let gather = Arc::new(Gather::default());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let ask = |question: u32| {
            let requests = requests.clone();
            Gather::ask(&gather, question, move |questions: Vec<u32>| async move {
                lock(&requests).push(questions.clone());
                questions
                    .into_iter()
                    .filter(|q| *q != 9)
                    .map(|q| (q, 10 * q))
                    .collect()
            })
        };
        assert_eq!(ask(1).now_or_never(), None);
        let answers = join_all([2, 1, 3, 2, 9].map(&ask)).await;
        assert_eq!(answers, [Some(20), Some(10), Some(30), Some(20), None]);
        assert_eq!(ask(1).await, Some(10));
        assert_eq!(*lock(&requests), [vec![1, 2, 3, 9], vec![1]]);
    }
}
