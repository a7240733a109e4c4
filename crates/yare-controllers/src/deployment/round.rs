//! One reconciliation of a deployment: finds or makes the current replica set, takes one step, writes.

use super::*;

impl Round<'_> {
    fn context(&self) -> &Context {
        &self.this.context
    }

    /// Drives the deployment one step.
    pub(super) async fn run(mut self) -> Result<Next, Error> {
        if self.cached.deletion_timestamp().is_some() {
            self.sync_revision(false).await?;
            return self.write_status().await;
        }
        self.check_paused().await?;
        if self.view.spec.paused {
            return self.sync().await;
        }
        if let Some(to) = self.view.metadata.annotations.get(ROLLBACK_TO).cloned() {
            return self.roll_back(to.parse().unwrap_or(0)).await;
        }
        if self.is_scaling() {
            return self.sync().await;
        }
        match self.view.strategy() {
            Strategy::Recreate => self.recreate().await,
            Strategy::RollingUpdate { .. } => self.rolling_update().await,
        }
    }

    /// The deployment's size is not what its replica sets were last scaled for.
    fn is_scaling(&self) -> bool {
        self.old.iter().chain(&self.new).filter(|r| r.replicas > 0).any(|r| {
            let desired = r.annotations().get(revision::DESIRED_REPLICAS).and_then(|d| d.parse::<i32>().ok());
            desired.is_some_and(|d| d != self.view.replicas())
        })
    }

    /// A paused deployment makes no progress, which must not count as failure.
    async fn check_paused(&mut self) -> Result<(), Error> {
        if self.view.progress_deadline().is_none() {
            return Ok(());
        }
        let current = condition(&self.view.status.conditions, "Progressing");
        if current.is_some_and(|c| c.reason == status::TIMED_OUT) {
            return Ok(());
        }
        let marked = current.is_some_and(|c| c.reason == status::PAUSED);
        let condition = match (self.view.spec.paused, marked) {
            (true, false) => status::progressing("Unknown", status::PAUSED, "Deployment is paused", self.now),
            (false, true) => {
                status::progressing("Unknown", status::RESUMED, "Deployment is resumed", self.now)
            }
            _ => return Ok(()),
        };
        status::set(&mut self.view.status.conditions, condition);
        self.save().await
    }

    /// Writes the status as it is in `view` and the revision annotation; later writes of this round build
    /// on the result.
    async fn save(&mut self) -> Result<(), Error> {
        let (status, revision) =
            (json!(self.view.status), self.view.metadata.annotations.get(REVISION).cloned());
        let write = |body: &mut Value| {
            body["status"] = status;
            if let Some(revision) = revision {
                body["metadata"]["annotations"][REVISION] = revision.into();
            }
        };
        let saved = self.context().api.put(&DEPLOYMENTS, &self.cached, "/status", write).await?;
        let view: View = saved.view()?;
        self.view.metadata = view.metadata;
        self.cached = saved;
        Ok(())
    }

    /// Makes sure that the current template's replica set exists (if `create`) and that revisions are
    /// right everywhere.
    async fn sync_revision(&mut self, create: bool) -> Result<(), Error> {
        let newest = self.old.iter().filter_map(|r| revision::revision(r.annotations())).max().unwrap_or(0);
        let next = newest.saturating_add(1);
        if let Some(set) = self.new.take() {
            return self.sync_existing(set, next).await;
        }
        if create { self.create(next).await } else { Ok(()) }
    }

    async fn sync_existing(&mut self, set: ReplicaSet, next: i64) -> Result<(), Error> {
        let mut annotations = set.annotations().clone();
        let changed = revision::make_current(&self.view.metadata.annotations, &mut annotations, next);
        let min_ready_seconds = self.view.spec.min_ready_seconds;
        if changed || set.view.spec.min_ready_seconds != min_ready_seconds {
            let write = |body: &mut Value| {
                body["metadata"]["annotations"] = json!(annotations);
                body["spec"]["minReadySeconds"] = min_ready_seconds.into();
            };
            let written = self.context().api.update(&REPLICA_SETS, &set.cached, write).await?;
            self.new = Some(ReplicaSet::new(written)?);
            return Ok(());
        }
        let mut save = self.set_revision(set.annotations().get(REVISION).cloned().unwrap_or_default());
        let progress = condition(&self.view.status.conditions, "Progressing");
        if self.view.progress_deadline().is_some() && progress.is_none() {
            let message = format!("Found new replica set \"{}\"", set.cached.name());
            let condition = status::progressing("True", status::FOUND_REPLICA_SET, message, self.now);
            status::set(&mut self.view.status.conditions, condition);
            save = true;
        }
        self.new = Some(set);
        if save { self.save().await } else { Ok(()) }
    }

    fn set_revision(&mut self, revision: String) -> bool {
        let annotations = &mut self.view.metadata.annotations;
        let changed = annotations.get(REVISION) != Some(&revision);
        annotations.insert(REVISION.into(), revision);
        changed
    }

    async fn create(&mut self, next: i64) -> Result<(), Error> {
        let deployment = &self.cached;
        let hash = template::hash(&self.view.spec.template, self.view.status.collision_count);
        let mut name = deployment.name().to_owned();
        name.truncate(NAME_MAX_BYTES - 1 - hash.len());
        let name = format!("{name}-{hash}");
        let mut pod_template = self.view.spec.template.clone();
        pod_template["metadata"]["labels"][POD_TEMPLATE_HASH] = hash.clone().into();
        let mut selector = self.view.spec.selector.clone();
        selector.match_labels.insert(POD_TEMPLATE_HASH.into(), hash);
        let total = plan::sum(self.old.iter().map(|r| r.replicas));
        let size = plan::new_size(self.view.strategy(), self.view.replicas(), total, 0);
        let mut annotations = Annotations::new();
        revision::make_current(&self.view.metadata.annotations, &mut annotations, next);
        revision::set_sizes(&mut annotations, self.view.replicas(), self.view.max_replicas());
        let body = json!({
            "kind": "ReplicaSet",
            "apiVersion": "apps/v1",
            "metadata": {
                "name": name,
                "namespace": deployment.namespace(),
                "labels": pod_template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [controller_ref(&DEPLOYMENTS, deployment)],
            },
            "spec": {
                "replicas": size,
                "minReadySeconds": self.view.spec.min_ready_seconds,
                "selector": selector,
                "template": pod_template,
            },
        });
        let context = self.context();
        let (set, fresh) = match context.api.create(&REPLICA_SETS, deployment.namespace(), &body).await {
            Ok(created) => (created, true),
            Err(error) if error.is_already_exists() => {
                let key = ObjectKey::new(deployment.namespace(), &name);
                let existing = context.api.get(&REPLICA_SETS, &key).await?;
                match existing {
                    Some(set) if self.is_mine(&set)? => (set, false),
                    Some(_) => {
                        // Another template with the same hash: the next attempt gets another name.
                        let count = self.view.status.collision_count.unwrap_or(0);
                        self.view.status.collision_count = Some(count.saturating_add(1));
                        self.save().await?;
                        return Err(error.into());
                    }
                    None => return Err(error.into()),
                }
            }
            Err(error) if error.is_namespace_terminating() => return Err(error.into()),
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {error}");
                context.warning(&DEPLOYMENTS, deployment, status::CREATE_ERROR, message.clone());
                if self.view.progress_deadline().is_some() {
                    let condition = status::progressing("False", status::CREATE_ERROR, message, self.now);
                    status::set(&mut self.view.status.conditions, condition);
                    // The creation's error is the one to report.
                    let _ = self.save().await;
                }
                return Err(error.into());
            }
        };
        if fresh && size > 0 {
            let message = format!("Scaled up replica set {} from 0 to {size}", set.name());
            context.normal(&DEPLOYMENTS, deployment, "ScalingReplicaSet", message);
        }
        let mut save = self.set_revision(next.to_string());
        if fresh && self.view.progress_deadline().is_some() {
            let message = format!("Created new replica set \"{}\"", set.name());
            let condition = status::progressing("True", status::NEW_REPLICA_SET, message, self.now);
            status::set(&mut self.view.status.conditions, condition);
            save = true;
        }
        self.new = Some(ReplicaSet::new(set)?);
        if save { self.save().await } else { Ok(()) }
    }

    fn is_mine(&self, set: &Cached) -> Result<bool, Error> {
        let view: SetView = set.view()?;
        Ok(ownership::is_controlled_by(set, &self.cached)
            && template::same_but_hash(&view.spec.template, &self.view.spec.template))
    }

    /// Gives a replica set a new size, and records the deployment's. Whether the size changed.
    async fn scale(&self, set: &mut ReplicaSet, size: i32) -> Result<bool, Error> {
        let mut annotations = set.annotations().clone();
        let noted = revision::set_sizes(&mut annotations, self.view.replicas(), self.view.max_replicas());
        let resize = set.replicas != size;
        if !noted && !resize {
            return Ok(false);
        }
        let before = set.replicas;
        let write = |body: &mut Value| {
            body["metadata"]["annotations"] = json!(annotations);
            body["spec"]["replicas"] = size.into();
        };
        let written = self.context().api.update(&REPLICA_SETS, &set.cached, write).await?;
        *set = ReplicaSet::new(written)?;
        if resize {
            let direction = if before < size { "up" } else { "down" };
            let name = set.cached.name();
            let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
            self.context().normal(&DEPLOYMENTS, &self.cached, "ScalingReplicaSet", message);
        }
        Ok(resize)
    }

    /// [`Round::scale`], but only if the size is another.
    async fn resize(&self, set: &mut ReplicaSet, size: i32) -> Result<bool, Error> {
        if set.replicas == size { Ok(false) } else { self.scale(set, size).await }
    }

    /// No rollout: paused, or only the size changed.
    async fn sync(mut self) -> Result<Next, Error> {
        self.sync_revision(false).await?;
        self.scale_all().await?;
        if self.view.spec.paused {
            self.clean_up().await?;
        }
        self.write_status().await
    }

    async fn scale_all(&mut self) -> Result<(), Error> {
        let desired = self.view.replicas();
        let (mut old, mut new) = (std::mem::take(&mut self.old), self.new.take());
        let result = self.scale_sets(desired, &mut old, &mut new).await;
        (self.old, self.new) = (old, new);
        result
    }

    async fn scale_sets(
        &self,
        desired: i32,
        old: &mut [ReplicaSet],
        new: &mut Option<ReplicaSet>,
    ) -> Result<(), Error> {
        let active = old.iter().chain(new.as_ref()).filter(|r| r.replicas > 0).count();
        if active <= 1 {
            // The only active one, or else the current, or else the newest, takes it all.
            let only = match old.iter().position(|r| r.replicas > 0) {
                Some(i) => Some(&mut old[i]),
                None => new.as_mut().or_else(|| old.last_mut()),
            };
            if let Some(set) = only {
                self.resize(set, desired).await?;
            }
            return Ok(());
        }
        let saturated = new.as_ref().is_some_and(|r| {
            let noted = r.annotations().get(revision::DESIRED_REPLICAS).and_then(|d| d.parse().ok());
            r.replicas == desired && noted == Some(desired) && r.view.status.available_replicas == desired
        });
        if saturated {
            for set in old.iter_mut().filter(|r| r.replicas > 0) {
                self.resize(set, 0).await?;
            }
            return Ok(());
        }
        let strategy = self.view.strategy();
        if strategy == Strategy::Recreate {
            return Ok(());
        }
        let mut sets: Vec<&mut ReplicaSet> =
            old.iter_mut().chain(new.as_mut()).filter(|r| r.replicas > 0).collect();
        let grows = desired > 0 && self.view.max_replicas() > plan::sum(sets.iter().map(|r| r.replicas));
        sets.sort_by(|a, b| {
            let age = if grows { ReplicaSet::by_age(b, a) } else { ReplicaSet::by_age(a, b) };
            b.replicas.cmp(&a.replicas).then(age)
        });
        let counts: Vec<Counts> = sets.iter().map(|r| r.counts()).collect();
        let sizes = plan::proportional(strategy, desired, self.view.status.replicas, &counts);
        for (set, size) in sets.into_iter().zip(sizes) {
            self.scale(set, size).await?;
        }
        Ok(())
    }

    async fn rolling_update(mut self) -> Result<Next, Error> {
        self.sync_revision(true).await?;
        let desired = self.view.replicas();
        let strategy = self.view.strategy();
        let Some(mut new) = self.new.take() else { return Ok(Next::Done) };
        let total = plan::sum(self.old.iter().map(|r| r.replicas)).saturating_add(new.replicas);
        let size = plan::new_size(strategy, desired, total, new.replicas);
        let grown = self.resize(&mut new, size).await;
        let counts = new.counts();
        self.new = Some(new);
        if grown? {
            return self.write_rollout_status().await;
        }
        let mut old = std::mem::take(&mut self.old);
        let active: Vec<usize> = (0..old.len()).filter(|&i| old[i].replicas > 0).collect();
        let mut shrunk = false;
        if !active.is_empty() {
            let sizes: Vec<Counts> = active.iter().map(|&i| old[i].counts()).collect();
            for (i, size) in plan::shrink_old(strategy, desired, counts, &sizes) {
                shrunk |= self.resize(&mut old[active[i]], size).await?;
            }
        }
        self.old = old;
        if !shrunk && status::is_complete(&self.view, &self.view.status) {
            self.clean_up().await?;
        }
        self.write_rollout_status().await
    }

    async fn recreate(mut self) -> Result<Next, Error> {
        self.sync_revision(false).await?;
        let mut old = std::mem::take(&mut self.old);
        let mut shrunk = false;
        for set in &mut old {
            shrunk |= self.resize(set, 0).await?;
        }
        self.old = old;
        if shrunk || self.old_pods_run()? {
            return self.write_rollout_status().await;
        }
        if self.new.is_none() {
            self.sync_revision(true).await?;
        }
        if let Some(mut new) = self.new.take() {
            let grown = self.resize(&mut new, self.view.replicas()).await;
            self.new = Some(new);
            grown?;
        }
        if status::is_complete(&self.view, &self.view.status) {
            self.clean_up().await?;
        }
        self.write_rollout_status().await
    }

    /// Also pods on their way out count: they may still hold what the new ones need.
    fn old_pods_run(&self) -> Result<bool, Error> {
        if self.old.iter().any(|r| r.view.status.replicas > 0) {
            return Ok(true);
        }
        for set in &self.old {
            for pod in self.this.pods.by_owner(set.cached.uid()) {
                if !pod.view::<PodView>()?.is_finished() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Deletes the oldest replica sets beyond the history's limit.
    async fn clean_up(&self) -> Result<(), Error> {
        let Some(limit) = self.view.spec.revision_history_limit.filter(|l| *l != i32::MAX) else {
            return Ok(());
        };
        let mut sets: Vec<&ReplicaSet> =
            self.old.iter().filter(|r| r.cached.deletion_timestamp().is_none()).collect();
        let surplus = sets.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        sets.sort_by(|a, b| {
            match (revision::revision(a.annotations()), revision::revision(b.annotations())) {
                (Some(x), Some(y)) if x != y => x.cmp(&y),
                _ => ReplicaSet::by_age(a, b),
            }
        });
        for set in sets.into_iter().take(surplus) {
            let status = &set.view.status;
            let busy = status.replicas != 0
                || set.replicas != 0
                || set.view.metadata.generation > status.observed_generation;
            if !busy {
                self.context().api.delete(&REPLICA_SETS, set.cached.key(), Deletion::of(&set.cached)).await?;
            }
        }
        Ok(())
    }

    async fn write_status(self) -> Result<Next, Error> {
        let status = status::calculate(&self.view, &self.old, self.new.as_ref(), self.now);
        if status != self.view.status {
            self.context().api.update_status(&DEPLOYMENTS, &self.cached, &status).await?;
        }
        Ok(Next::Done)
    }

    async fn write_rollout_status(self) -> Result<Next, Error> {
        let status = status::rollout(self.cached.name(), &self.view, &self.old, self.new.as_ref(), self.now);
        if status != self.view.status {
            self.context().api.update_status(&DEPLOYMENTS, &self.cached, &status).await?;
            return Ok(Next::Done);
        }
        Ok(status::next_check(&self.view, &status, self.now).map_or(Next::Done, Next::After))
    }

    /// Puts the template of an earlier revision back (0: of the last one).
    async fn roll_back(mut self, to: i64) -> Result<Next, Error> {
        self.sync_revision(true).await?;
        let sets: Vec<&ReplicaSet> = self.old.iter().chain(&self.new).collect();
        let mut revisions: Vec<i64> =
            sets.iter().filter_map(|r| revision::revision(r.annotations())).collect();
        revisions.sort_unstable();
        let to = if to == 0 { revisions.len().checked_sub(2).map_or(0, |i| revisions[i]) } else { to };
        let context = self.context();
        let warn =
            |reason: &str, message: String| context.warning(&DEPLOYMENTS, &self.cached, reason, message);
        let found = sets.into_iter().find(|r| to != 0 && revision::revision(r.annotations()) == Some(to));
        let set = match found {
            None => {
                let message = if to == 0 {
                    "Unable to find last revision."
                } else {
                    "Unable to find the revision to rollback to."
                };
                warn("DeploymentRollbackRevisionNotFound", message.into());
                None
            }
            Some(set) if template::same_but_hash(&set.view.spec.template, &self.view.spec.template) => {
                let name = self.cached.name();
                let message = format!(
                    "The rollback revision contains the same template as current deployment \"{name}\""
                );
                warn("DeploymentRollbackTemplateUnchanged", message);
                None
            }
            Some(set) => Some(set),
        };
        let write = |body: &mut Value| {
            let mut annotations = self.view.metadata.annotations.clone();
            if let Some(set) = set {
                let mut template = set.view.spec.template.clone();
                if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut)
                {
                    labels.remove(POD_TEMPLATE_HASH);
                }
                body["spec"]["template"] = template;
                annotations.retain(|name, _| revision::is_private(name));
                let public = set.annotations().iter().filter(|(name, _)| !revision::is_private(name));
                annotations.extend(public.map(|(k, v)| (k.clone(), v.clone())));
            }
            annotations.remove(ROLLBACK_TO);
            body["metadata"]["annotations"] = json!(annotations);
        };
        context.api.update(&DEPLOYMENTS, &self.cached, write).await?;
        if set.is_some() {
            let message = format!("Rolled back deployment \"{}\" to revision {to}", self.cached.name());
            context.normal(&DEPLOYMENTS, &self.cached, "DeploymentRollback", message);
        }
        Ok(Next::Done)
    }
}
