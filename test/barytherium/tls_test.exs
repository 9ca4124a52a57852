defmodule Barytherium.TlsTest do
  @moduledoc """
  Which servers a connection trusts, and which errors it reports for the others: natively and with
  `:ssl`.
  """
  use Barytherium.TlsCase, async: true

  import ExUnit.CaptureLog
  import Barytherium.ReceiverCase, only: [eventually: 1]

  alias Barytherium.NetworkCase

  defp self_signed(context, authority) do
    %{directory: directory} = directory(context)
    [certificate, key] = for name <- ["cert.pem", "key.pem"], do: Path.join(directory, name)

    arguments =
      ~w(req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost
         -addext basicConstraints=#{authority} -keyout #{key} -out #{certificate})

    {_output, 0} = System.cmd("openssl", arguments, stderr_to_stdout: true)
    {certificate, certfile: certificate, keyfile: key}
  end

  for tls <- [:native, :otp] do
    describe "#{tls}:" do
      @tls [tls: tls]

      for version <- [:"tlsv1.2", :"tlsv1.3"],
          host <- ["localhost", :localhost, "127.0.0.1", {127, 0, 0, 1}] do
        test "a trusted server with the right name is accepted: #{inspect(host)}, #{version}",
             context do
          %{server: server, cacerts: cacerts} = context.certificates
          port = server(server ++ [versions: [unquote(version)]])
          network = connect(unquote(Macro.escape(host)), port, @tls ++ [cacerts: cacerts])
          assert_connected()
          assert Network.stats(network).tls == unquote(tls)
        end
      end

      test "by default only the system's authorities are trusted", context do
        port = server(context.certificates.server)

        log =
          capture_log(fn ->
            connect("localhost", port, @tls)
            assert_refused(:unknown_ca)
          end)

        assert log =~ "TLS: localhost:#{port}: "
      end

      test "another authority is not trusted", context do
        port = server(context.certificates.server)
        connect("localhost", port, @tls ++ [cacerts: Certificates.make(["localhost"]).cacerts])
        assert_refused(:unknown_ca)
      end

      for authority <- ["CA:TRUE", "CA:FALSE"] do
        test "a certificate that signs itself is not trusted (#{authority})", context do
          {certificate, options} = self_signed(context, unquote(authority))
          port = server(options)
          connect("localhost", port, @tls)
          assert_refused(:bad_certificate)

          # Not even if it is the authority to trust, except natively if it is not marked as one.
          connect("localhost", port, @tls ++ [cacertfile: certificate])

          if @tls[:tls] == :native and unquote(authority) == "CA:FALSE",
            do: assert_connected(),
            else: assert_refused(:bad_certificate)
        end
      end

      test "a certificate of another host is refused, by name and by address" do
        certificates = Certificates.make(["other.example"])
        port = server(certificates.server)
        trusting = @tls ++ [cacerts: certificates.cacerts]

        for host <- ["localhost", "127.0.0.1", {127, 0, 0, 1}] do
          connect(host, port, trusting)
          assert_refused(:hostname_check_failed)
        end

        # It is accepted if the options name that host, or no host.
        for name <- [~c"other.example", "other.example", :disable] do
          connect("localhost", port, trusting ++ [server_name_indication: name])
          assert_connected()
        end
      end

      test "without a name the authority still counts" do
        port = server(Certificates.make(["localhost"]).server)
        connect("localhost", port, @tls ++ [server_name_indication: :disable])
        assert_refused(:unknown_ca)
      end

      test "a wildcard matches one label" do
        certificates = Certificates.make(["*.feeds.example"])
        port = server(certificates.server)

        name = &(@tls ++ [cacerts: certificates.cacerts, server_name_indication: &1])
        connect("localhost", port, name.(~c"one.feeds.example"))
        assert_connected()
        connect("localhost", port, name.(~c"one.two.feeds.example"))
        assert_refused(:hostname_check_failed)
      end

      for {name, validity} <- [
            {"has expired", {{2001, 1, 1}, {2002, 1, 1}}},
            {"is not yet valid", {{2090, 1, 1}, {2091, 1, 1}}}
          ] do
        test "a certificate that #{name} is refused" do
          certificates =
            Certificates.make(["localhost"], validity: unquote(Macro.escape(validity)))

          port = server(certificates.server)
          connect("localhost", port, @tls ++ [cacerts: certificates.cacerts])
          assert_refused(:certificate_expired)
        end
      end

      test "a missing client certificate is reported (TLS 1.2)", context do
        %{server: server, cacerts: cacerts} = context.certificates
        required = [verify: :verify_peer, fail_if_no_peer_cert: true, versions: [:"tlsv1.2"]]
        connect("localhost", server(server ++ required), @tls ++ [cacerts: cacerts])
        assert_refused(:handshake_failure)
      end

      # In TLS 1.3 the client's handshake ends before the server checks its certificate. If the alert
      # comes before anybody reads, `:ssl` reports only that the connection is closed. The log has the
      # reason.
      test "a missing client certificate is reported (TLS 1.3)", context do
        %{server: server, cacerts: cacerts} = context.certificates
        required = [verify: :verify_peer, fail_if_no_peer_cert: true, versions: [:"tlsv1.3"]]
        reasons = [:certificate_required | if(@tls[:tls] == :otp, do: [:closed], else: [])]

        log =
          capture_log(fn ->
            connect("localhost", server(server ++ required), @tls ++ [cacerts: cacerts])
            assert_receive {:"$gen_cast", {:barytherium, :disconnect, reason}}
            assert reason in reasons
          end)

        assert log =~ ~r/certificate.?required/i
      end

      test "a client certificate of another authority is reported", context do
        %{server: server, cacerts: cacerts} = context.certificates
        required = [verify: :verify_peer, fail_if_no_peer_cert: true, versions: [:"tlsv1.2"]]
        port = server(server ++ required)
        stranger = Certificates.make(["localhost"]).client
        connect("localhost", port, @tls ++ [cacerts: cacerts] ++ stranger)
        assert_refused(:unknown_ca)
      end

      test "a version that the server does not have is reported", context do
        %{server: server, cacerts: cacerts} = context.certificates
        port = server(server ++ [versions: [:"tlsv1.2"]])
        connect("localhost", port, @tls ++ [cacerts: cacerts, versions: [:"tlsv1.3"]])
        assert_refused(:protocol_version)
      end

      test "a cipher that the server does not have is reported", context do
        %{server: server, cacerts: cacerts} = context.certificates
        version = [versions: [:"tlsv1.2"]]
        port = server(server ++ version ++ [ciphers: [~c"ECDHE-RSA-AES128-GCM-SHA256"]])
        client = [cacerts: cacerts, ciphers: [~c"ECDHE-RSA-AES256-GCM-SHA384"]] ++ version
        connect("localhost", port, @tls ++ client)
        assert_refused(:insufficient_security)
      end

      for answer <- ["HTTP/1.1 400 Bad Request\r\n\r\n", "ERROR\nmessage:use TLS\n\n\0"] do
        test "a peer that does not speak TLS is reported: #{inspect(answer)}" do
          listener = Peer.listen(:tcp)
          connect("localhost", Peer.port(listener), @tls)
          peer = Peer.accept(listener)
          Peer.send(peer, unquote(answer))
          assert_refused(:unexpected_message)
        end
      end

      test "a peer that says nothing is a time-out, and one that closes is closed" do
        listener = Peer.listen(:tcp)
        connect("localhost", Peer.port(listener), @tls ++ [connect_timeout: 200])
        assert_refused(:timeout)
        # On a busy machine the time may be over before there is a connection.
        listener = Peer.listen(:tcp)
        connect("localhost", Peer.port(listener), @tls)
        listener |> Peer.accept() |> Peer.close()
        assert_refused(:closed)
      end

      test "details that the error atom does not have are logged", context do
        port = server(context.certificates.server)

        log =
          capture_log(fn ->
            connect("localhost", port, @tls ++ [cacertfile: "/no/such/file.pem"])
            assert_refused(:options)
          end)

        assert log =~ "cacertfile"
        assert log =~ "/no/such/file.pem"
      end

      test "a peer that does not read is a time-out", context do
        %{server: server, cacerts: cacerts} = context.certificates
        port = server(server)
        opts = [cacerts: cacerts, send_timeout: 200, send_buffer: 4096]
        connect("localhost", port, @tls ++ opts)
        sender = assert_connected()
        large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
        for _n <- 1..2, do: Sender.write(sender, [large])
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, reason}}
        assert reason in [:timeout, :closed]
      end

      test "Connection.connect/3 verifies the certificate, and its socket is read by length",
           context do
        %{server: server, cacerts: cacerts} = context.certificates
        port = server(server)
        secure = [secure: true] ++ @tls
        assert {:error, :unknown_ca} = Connection.connect("localhost", port, secure)
        assert {:ok, socket} = Connection.connect("localhost", port, secure ++ [cacerts: cacerts])
        assert Connection.recv(socket, 9, 1_000) == {:ok, "CONNECTED"}
        assert Connection.recv(socket, 0, 1_000) == {:ok, "\nversion:1.2\n\n\0"}
        assert Connection.recv(socket, 1, 10) == {:error, :timeout}
        assert Connection.close(socket) == :ok
        assert {:error, _closed} = Connection.send(socket, "x")
      end
    end
  end

  test "TLS options without secure: true raise" do
    error =
      assert_raise ArgumentError, fn ->
        Network.start_link(self(), "localhost", 1, cacertfile: "ca.pem")
      end

    assert Exception.message(error) =~ "secure: true is missing"
  end

  test "a TLS peer on a connection without TLS is a parse error", context do
    port = server(context.certificates.server)
    {:ok, network} = Network.start_link(self(), "localhost", port)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :parse_error}}
    eventually(fn -> not :sys.get_state(network).is_connected end)
  end

  test "an end with close_notify is not logged as truncated" do
    {network, peer} = NetworkCase.connect(self(), Peer.options(:tls), :tls)
    NetworkCase.connected(network, peer)

    log =
      capture_log(fn ->
        Peer.close(peer)
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      end)

    refute log =~ "127.0.0.1:#{:sys.get_state(network).port} closed"
  end
end
