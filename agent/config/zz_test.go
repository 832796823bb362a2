package config
import ("testing";"os")
func TestZZ(t *testing.T){
 d:=t.TempDir()+"/c.yml"
 os.WriteFile(d,Sample(),0o600)
 _,w,err:=Load(Source{Path:d})
 t.Log(w,"\n",err)
 os.WriteFile(d,[]byte(`
scope: a b
namme: x
restapi: {listen: 8008, autentication: {username: u, password: geheim}}
consul: {host: "https://u:geheim@h", verify: maybe, port: x}
bootstrap:
  dcs: {ttl: 5, loop_wait: 3}
  initdb: {encoding: UTF8, pgdata: /x}
  users: {AppUser: {password: [geheim], optoins: [a]}}
postgresql:
  data_dir: /var/lib
  listne: x
  superuser: {username: a, password: geheim}
  authentication: {superuser: "geheim"}
  parameters: {pg_stat_statements.max: 100, foo: [1]}
tags: {Zone: eu, nofailover: 7}
etcd: {host: x}
ttl: 30
`),0o644)
 c,w,err:=Load(Source{Path:d, Environ: []string{"LICTOR_CONSUL_HOTS=a", "PATRONI_RESTAPI_LISTEN=x"}})
 for _,x:=range w {t.Log(x)}
 t.Log("\n",err,c)
}
