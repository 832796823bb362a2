// Package vm proves the watchdog in virtual machines: QEMU under software
// emulation, kernels of Debian, the softdog and i6300esb drivers, and in it a
// real Consul, agent and PostgreSQL (docs/watchdog.md); and what a power cut leaves
// of PgBouncer's file (docs/design.md, 7.3).
//
// prepare.sh unpacks kernels and PostgreSQL; a Machine is one run of QEMU; the
// program in guest is its first process, which plays a scenario and tells what
// happens on the serial console (package event).
package vm
