// Package ansible tests the Ansible collection (folder ansible/) and the packages:
// syntax and lint always, and with LICTOR_TEST_ANSIBLE=1 (`make test-ansible`) on
// real hosts. A host is a systemd-nspawn container with an overlay over one
// debootstrapped Debian 12 (rootfs.sh), in a network namespace of its own on one
// bridge; Ansible reaches it over ssh like any other host.
//
//	site.go    the hosts of one run, their bridge, what a killed run left behind
//	host.go    one host: boot, power cut, power off
//	run.go     ansible-playbook and what it says
//	load.go    clients through the load balancer, whose errors are counted
//	depot.go   packages and downloads that the hosts fetch over HTTP
package ansible
