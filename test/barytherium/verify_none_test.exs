defmodule Barytherium.VerifyNoneTest do
  # The warning is logged once in a VM: tests that run at the same time must not use it up.
  use Barytherium.TlsCase, async: false

  import ExUnit.CaptureLog

  test "verify_none trusts any server, and is logged once", context do
    :persistent_term.erase(Barytherium.Connection.Tls)
    port = server(context.certificates.server)

    log =
      capture_log(fn ->
        for tls <- [:native, :otp, :native] do
          connect("localhost", port, verify: :verify_none, tls: tls)
          assert_connected()
        end
      end)

    assert length(String.split(log, "verify: :verify_none: anybody")) == 2
  end
end
