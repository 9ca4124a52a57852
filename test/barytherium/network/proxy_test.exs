defmodule Barytherium.Network.ProxyTest do
  @moduledoc "Connections through an HTTP proxy, of each kind."
  use Barytherium.ReceiverCase, async: true

  import ExUnit.CaptureLog

  alias Barytherium.{HttpProxy, Network}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  for transport <- Peer.transports() -- [:socket] do
    test "a tunnel, with the proxy's name lookup and a login (#{transport})" do
      transport = unquote(transport)
      listener = Peer.listen(transport)
      port = Peer.port(listener)
      proxy = "http://me:p%40ss@localhost:#{HttpProxy.start()}"
      opts = [proxy: proxy] ++ Peer.options(transport)
      # Only the proxy knows this name.
      {:ok, network} = Network.start_link(self(), "broker.invalid", port, opts)
      assert_receive {:proxied, target, headers}
      assert target == "broker.invalid:#{port}"
      assert headers == %{"host" => target, "proxy-authorization" => "Basic bWU6cEBzcw=="}

      peer = Peer.accept(listener, transport)
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      Sender.write(sender, [%Frame{command: :connect}])
      assert Peer.recv(peer) == {:ok, "CONNECT\n\n\0"}
      Peer.send(peer, connected_bytes())
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
      Peer.send(peer, "MESSAGE\n\nlate\0")
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: "late"}], _}}}
      Peer.close(peer)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      GenServer.stop(network)
    end
  end

  test "an IPv6 address is in brackets" do
    proxy = "http://127.0.0.1:#{HttpProxy.start("HTTP/1.1 502 Bad Gateway\r\n\r\n")}"
    assert Connection.connect("::1", 61_613, proxy: proxy) == {:error, :proxy_refused}
    assert_receive {:proxied, "[::1]:61613", _headers}
  end

  test "the proxy refuses" do
    for {answer, text} <- [
          {"HTTP/1.1 407 Proxy Authentication Required\r\nA: b\r\n\r\n",
           "407 Proxy Authentication Required"},
          {"SSH-2.0-OpenSSH\r\n\r\n", "its answer is no HTTP"},
          # These bytes would be lost.
          {"HTTP/1.1 200 OK\r\n\r\nCONNECTED\n", "200 OK"}
        ] do
      proxy = "http://127.0.0.1:#{HttpProxy.start(answer)}"

      log =
        capture_log(fn ->
          assert Connection.connect("broker.invalid", 1, proxy: proxy) ==
                   {:error, :proxy_refused}
        end)

      assert log =~ "the proxy refuses a connection to broker.invalid:1: #{text}"
    end
  end

  test "nothing can be put into the request by a host" do
    for host <- ["a\r\nb: c", "a b", 'a\r\nb', "a\tb"] do
      assert_raise ArgumentError, fn ->
        Connection.connect(host, 1, proxy: "http://127.0.0.1:1")
      end
    end

    assert_raise ArgumentError, ~r/local socket/, fn ->
      Connection.connect({:local, "/a"}, 0, proxy: "http://127.0.0.1:1")
    end
  end

  test "an address is verified natively, and with :ssl not at all, which would take it for the proxy's" do
    proxy = "http://127.0.0.1:#{HttpProxy.start()}"
    other = Barytherium.Certificates.make([{127, 0, 0, 1}])
    listener = listen(other.server)

    for {host, opts, result} <- [
          {"10.9.8.7", [tls: :native], :hostname_check_failed},
          {"10.9.8.7", [tls: :otp], :options},
          {{10, 9, 8, 7}, [tls: :otp], :options},
          {"127.0.0.1", [tls: :otp], :options}
        ] do
      opts = [proxy: proxy, secure: true, cacerts: other.cacerts] ++ opts
      assert Connection.connect(host, listener, opts) == {:error, result}
    end

    opts = [proxy: proxy, secure: true, cacerts: other.cacerts, tls: :native]
    assert {:ok, socket} = Connection.connect("127.0.0.1", listener, opts)
    Connection.close(socket)
  end

  # Listens with TLS, and takes whoever comes. Returns the port.
  defp listen(certificate) do
    options = [mode: :binary, active: false, ip: {127, 0, 0, 1}, log_level: :none]
    {:ok, listener} = :ssl.listen(0, options ++ certificate)
    {:ok, {_address, port}} = :ssl.sockname(listener)

    spawn_link(fn ->
      for _n <- Stream.cycle([1]) do
        with {:ok, socket} <- :ssl.transport_accept(listener), do: :ssl.handshake(socket, 2_000)
      end
    end)

    port
  end

  test "options that :ssl refuses leave no socket" do
    opts = [secure: true, tls: :otp, verify: :verify_none, versions: [:bad]]

    for _n <- 1..5 do
      proxy = [proxy: "http://127.0.0.1:#{HttpProxy.start()}"]
      listener = Peer.listen(:tcp)
      assert {:error, _reason} = Connection.connect("b", Peer.port(listener), proxy ++ opts)
      Peer.close(listener)
    end

    refute Enum.any?(Port.list(), &(Port.info(&1, :connected) == {:connected, self()}))
  end

  test "there is no proxy, or it says nothing" do
    listener = Peer.listen(:tcp)
    proxy = "http://127.0.0.1:#{Peer.port(listener)}"
    opts = [proxy: proxy, connect_timeout: 50]
    assert Connection.connect("broker.invalid", 1, opts) == {:error, :timeout}
    Peer.close(listener)
    assert Connection.connect("broker.invalid", 1, opts) == {:error, :econnrefused}
  end

  test "a proxy that cannot be used is refused, and its password is not shown" do
    for proxy <- [
          "https://a:secret@b:1",
          "socks5://a:secret@b:1",
          "b:1",
          "http://",
          "http://h:99999",
          :none
        ] do
      error =
        assert_raise ArgumentError, fn ->
          Network.start_link(self(), "localhost", 1, proxy: proxy)
        end

      refute Exception.message(error) =~ "secret"
    end
  end
end
