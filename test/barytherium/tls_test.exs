defmodule Barytherium.TlsTest do
  @moduledoc "Which certificates a connection trusts, and which errors it reports for the others."
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias Barytherium.{Certificates, Connection, Frame, Network, Peer}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  setup_all do
    %{certificates: Certificates.make(["localhost", {127, 0, 0, 1}])}
  end

  # Starts a server that sends CONNECTED after each handshake. Returns its port.
  defp server(options) do
    test = self()

    spawn_link(fn ->
      mode = [mode: :binary, active: false, reuseaddr: true, ip: {127, 0, 0, 1}, log_level: :none]
      {:ok, listener} = :ssl.listen(0, mode ++ options)
      {:ok, {_address, port}} = :ssl.sockname(listener)
      send(test, {:port, port})
      serve(listener)
    end)

    receive do: ({:port, port} -> port)
  end

  defp serve(listener) do
    {:ok, socket} = :ssl.transport_accept(listener)

    with {:ok, socket} <- :ssl.handshake(socket, 5_000) do
      :ssl.send(socket, "CONNECTED\nversion:1.2\n\n\0")
      :ssl.recv(socket, 0, 2_000)
    end

    serve(listener)
  end

  defp connect(host, port, opts),
    do: Network.start_link(self(), host, port, [secure: true] ++ opts)

  defp assert_connected do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}, 5_000
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    sender
  end

  defp assert_refused(reason) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, ^reason}}}, 5_000
  end

  for version <- [:"tlsv1.2", :"tlsv1.3"], host <- ["localhost", "127.0.0.1", {127, 0, 0, 1}] do
    test "a trusted server with the right name is accepted: #{inspect(host)}, #{version}",
         context do
      %{server: server, cacerts: cacerts} = context.certificates
      port = server(server ++ [versions: [unquote(version)]])
      connect(unquote(Macro.escape(host)), port, cacerts: cacerts)
      assert_connected()
    end
  end

  test "by default only the system's authorities are trusted", context do
    port = server(context.certificates.server)
    connect("localhost", port, [])
    assert_refused(:unknown_ca)
  end

  test "another authority is not trusted", context do
    port = server(context.certificates.server)
    connect("localhost", port, cacerts: Certificates.make(["localhost"]).cacerts)
    assert_refused(:unknown_ca)
  end

  test "a certificate of another host is refused, by name and by address" do
    certificates = Certificates.make(["other.example"])
    port = server(certificates.server)
    connect("localhost", port, cacerts: certificates.cacerts)
    assert_refused(:handshake_failure)
    connect("127.0.0.1", port, cacerts: certificates.cacerts)
    assert_refused(:handshake_failure)
    # It is accepted if the options name that host.
    opts = [cacerts: certificates.cacerts, server_name_indication: 'other.example']
    connect("localhost", port, opts)
    assert_connected()
  end

  test "a wildcard matches one label" do
    certificates = Certificates.make(["*.feeds.example"])
    port = server(certificates.server)

    name = &[cacerts: certificates.cacerts, server_name_indication: &1]
    connect("localhost", port, name.('one.feeds.example'))
    assert_connected()
    connect("localhost", port, name.('one.two.feeds.example'))
    assert_refused(:handshake_failure)
  end

  test "an expired certificate is refused" do
    certificates = Certificates.make(["localhost"], validity: {{2001, 1, 1}, {2002, 1, 1}})
    port = server(certificates.server)
    connect("localhost", port, cacerts: certificates.cacerts)
    assert_refused(:certificate_expired)
  end

  test "verify_none trusts any server, and is logged once", context do
    :persistent_term.erase(Barytherium.Connection.Tls)
    port = server(context.certificates.server)

    log =
      capture_log(fn ->
        for _n <- 1..2 do
          connect("localhost", port, verify: :verify_none)
          assert_connected()
        end
      end)

    assert length(String.split(log, "verify: :verify_none: anybody")) == 2
  end

  test "a client certificate is read from files", context do
    directory = Path.join(System.tmp_dir!(), "barytherium_#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    files = Certificates.write!(context.certificates, directory)

    server = [
      cacertfile: files.client_cacertfile,
      verify: :verify_peer,
      fail_if_no_peer_cert: true
    ]

    port = server(files.server ++ server)
    connect("localhost", port, [cacertfile: files.cacertfile] ++ files.client)
    assert_connected()
  end

  test "a missing client certificate is reported (TLS 1.2)", context do
    %{server: server, cacerts: cacerts} = context.certificates
    required = [verify: :verify_peer, fail_if_no_peer_cert: true, versions: [:"tlsv1.2"]]
    connect("localhost", server(server ++ required), cacerts: cacerts)
    assert_refused(:handshake_failure)
  end

  # In TLS 1.3 the client's handshake ends before the server checks its certificate. If the alert comes
  # before anybody reads, `:ssl` reports only that the connection is closed. The log has the reason.
  test "a missing client certificate is reported (TLS 1.3)", context do
    %{server: server, cacerts: cacerts} = context.certificates
    required = [verify: :verify_peer, fail_if_no_peer_cert: true, versions: [:"tlsv1.3"]]

    log =
      capture_log(fn ->
        connect("localhost", server(server ++ required), cacerts: cacerts)
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, reason}}, 5_000
        assert reason in [:certificate_required, :closed]
      end)

    assert log =~ ~r/certificate.required/i
  end

  test "the log has details that the error atom does not have", context do
    port = server(context.certificates.server)

    log =
      capture_log(fn ->
        connect("localhost", port, cacertfile: "/no/such/file.pem")
        assert_refused(:options)
      end)

    assert log =~ "cacertfile"
    assert log =~ "/no/such/file.pem"
  end

  test "a peer that does not speak TLS, or sends nothing, is a connect error" do
    listener = Peer.listen(:tcp)
    connect("localhost", Peer.port(listener), [])
    peer = Peer.accept(listener)
    Peer.send(peer, "HTTP/1.1 400 Bad Request\r\n\r\n")
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, reason}}}, 5_000
    assert is_atom(reason)

    connect("localhost", Peer.port(listener), connect_timeout: 200)
    assert_refused(:timeout)
  end

  test "TLS options without secure: true raise" do
    error =
      assert_raise ArgumentError, fn ->
        Network.start_link(self(), "localhost", 1, cacertfile: "ca.pem")
      end

    assert Exception.message(error) =~ "secure: true is missing"
  end

  test "a peer that does not read is a time-out", context do
    %{server: server, cacerts: cacerts} = context.certificates
    port = server(server)
    opts = [cacerts: cacerts, send_timeout: 200, send_buffer: 4096]
    connect("localhost", port, opts)
    sender = assert_connected()
    large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
    for _n <- 1..2, do: Sender.write(sender, [large])
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, reason}}, 10_000
    assert reason in [:timeout, :closed]
  end

  test "Connection.connect/3 verifies the certificate too", context do
    %{server: server, cacerts: cacerts} = context.certificates
    port = server(server)
    assert {:error, :unknown_ca} = Connection.connect("localhost", port, secure: true)
    assert {:ok, socket} = Connection.connect("localhost", port, secure: true, cacerts: cacerts)
    Connection.close(socket)
  end
end
