//! Command, arguments, working directory, standard streams.

use async_trait::async_trait;

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::pod::expand::expand;

pub(crate) struct Command;

#[async_trait]
impl ContainerHook for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let env = &start.env;
        let words = |list: &[String]| list.iter().map(|w| expand(w, |name| env.get(name).cloned())).collect();
        let (command, args) = (words(&start.container.command), words(&start.container.args));
        let config = &mut start.config;
        config.command = command;
        config.args = args;
        config.working_dir = start.container.working_dir.clone().into();
        config.stdin = start.container.stdin;
        config.stdin_once = start.container.stdin_once;
        config.tty = start.container.tty;
        Ok(())
    }
}
