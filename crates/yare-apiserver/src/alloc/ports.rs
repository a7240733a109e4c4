//! Node ports of services.

use std::collections::HashMap;

use serde_json::Value;
use yare_kinds::{
    strategy::core::service::needs_node_ports,
    view::{View, ViewMut},
};
use yare_schema::field::{FieldError, Path};

use super::{Reserved, SERVICE, metrics, node_ports};
use crate::{
    core::Call,
    status::{ApiError, ApiResult},
};

/// Gives one service its ports.
pub struct Ports<'a, 'b> {
    call: &'a Call,
    name: String,
    reserved: &'a mut Reserved<'b>,
}

impl<'a, 'b> Ports<'a, 'b> {
    /// For a service.
    pub fn new(call: &'a Call, service: &Value, reserved: &'a mut Reserved<'b>) -> Self {
        Self { call, name: service.str_at("metadata.name").to_owned(), reserved }
    }

    /// Takes the port that is asked for, or says why it cannot be had.
    fn take(&mut self, wanted: i64) -> Result<(), String> {
        let allocators = &self.call.core.allocators;
        let (low, high) = allocators.ports;
        let Some(port) = u16::try_from(wanted).ok().filter(|p| (low..=high).contains(p)) else {
            self.reserved.counts_port(metrics::STATIC, false);
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {low}-{high}"
            ));
        };
        let free = allocators.taken.lock().ports.insert(port);
        self.reserved.counts_port(metrics::STATIC, free);
        if !free {
            return Err("provided port is already allocated".to_owned());
        }
        self.reserved.ports.push(port);
        Ok(())
    }

    fn take_at(&mut self, i: usize, wanted: i64) -> ApiResult<()> {
        self.take(wanted).map_err(|why| {
            let path = Path::new("spec");
            let list = path.child("ports");
            let p = list.index(i);
            ApiError::invalid(SERVICE, &self.name, &[FieldError::invalid(&p.child("nodePort"), wanted, why)])
        })
    }

    /// Any free port.
    fn take_any(&mut self) -> Option<i64> {
        let given = self.call.core.allocators.take_port(&*self.call.core.config.random);
        self.reserved.counts_port(metrics::DYNAMIC, given.is_some());
        self.reserved.ports.extend(given);
        given.map(i64::from)
    }

    fn take_some(&mut self) -> ApiResult<i64> {
        self.take_any().ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    }

    /// Of a new service: what is reached by one number over several protocols has one node port for them all.
    pub fn create(&mut self, service: &mut Value) -> ApiResult<()> {
        let takes_new = needs_node_ports(service);
        let mut given: HashMap<i64, i64> = HashMap::new();
        for i in 0..service.items("spec.ports").len() {
            let ports = service.items("spec.ports");
            let (number, wanted) = (ports[i].int_at("port"), ports[i].int_at("nodePort"));
            if wanted == 0 && !takes_new {
                continue;
            }
            let node_port = match given.get(&number) {
                Some(shared) if wanted == 0 || wanted == *shared => *shared,
                Some(_) => {
                    self.take_at(i, wanted)?;
                    wanted
                }
                None => {
                    let asked = ports.iter().filter(|p| p.int_at("port") == number);
                    let asked = asked.map(|p| p.int_at("nodePort")).find(|p| *p != 0);
                    let node_port = match asked {
                        Some(asked) => {
                            self.take_at(i, asked)?;
                            asked
                        }
                        None => self.take_some()?,
                    };
                    given.insert(number, node_port);
                    node_port
                }
            };
            service.items_mut("spec.ports")[i].set("nodePort", node_port);
        }
        Ok(())
    }

    /// Of a changed service, whose ports stay its own.
    pub fn update(&mut self, service: &mut Value, old: &Value) -> ApiResult<()> {
        let takes_new = needs_node_ports(service);
        let had = node_ports(old);
        let mut seen: Vec<(String, i64)> = Vec::new();
        for i in 0..service.items("spec.ports").len() {
            let port = &service.items("spec.ports")[i];
            let protocol = port.str_at("protocol").to_owned();
            let mut node_port = port.int_at("nodePort");
            if node_port == 0 {
                if !takes_new {
                    continue;
                }
                node_port = self.take_some()?;
                service.items_mut("spec.ports")[i].set("nodePort", node_port);
            } else {
                let own = |port: u16| had.contains(&port) || self.reserved.ports.contains(&port);
                if !u16::try_from(node_port).is_ok_and(own) {
                    self.take_at(i, node_port)?;
                }
            }
            if seen.contains(&(protocol.clone(), node_port)) {
                return Err(ApiError::internal(format!("duplicate nodePort: {{{protocol} {node_port}}}")));
            }
            seen.push((protocol, node_port));
        }
        Ok(())
    }

    /// The port at which load balancers ask for a node's health.
    pub fn health(&mut self, service: &mut Value) -> ApiResult<()> {
        let wanted = service.int_at("spec.healthCheckNodePort");
        if wanted != 0 {
            return self.take(wanted).map_err(|why| {
                ApiError::internal(format!(
                    "failed to allocate requested HealthCheck NodePort {wanted}: {why}"
                ))
            });
        }
        let given = self.take_any().ok_or_else(|| {
            ApiError::internal("failed to allocate a HealthCheck NodePort 0: range is full")
        })?;
        service.set("spec.healthCheckNodePort", given);
        Ok(())
    }
}
