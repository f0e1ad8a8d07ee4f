"""Work as tasks on a Ray cluster; `ray_pool` alone imports ray."""
