//! `ImageLocality`: a node that has the images already is better, the more so the larger they are.

use super::{MAX_SCORE, Plugin, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

const MIN_BYTES: i64 = 23 * 1024 * 1024;
const MAX_BYTES_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn score(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let present: i64 = pod.images.iter().filter_map(|image| node.images.get(image)).sum();
        let most = MAX_BYTES_PER_CONTAINER * pod.images.len().max(1) as i64;
        MAX_SCORE * (present.clamp(MIN_BYTES, most) - MIN_BYTES) / (most - MIN_BYTES)
    }
}
