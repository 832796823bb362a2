module github.com/lictor-ha/lictor/e2e/tools/consul-template

go 1.26
