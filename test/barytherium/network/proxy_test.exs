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

  test "there is no proxy, or it says nothing" do
    listener = Peer.listen(:tcp)
    proxy = "http://127.0.0.1:#{Peer.port(listener)}"
    opts = [proxy: proxy, connect_timeout: 50]
    assert Connection.connect("broker.invalid", 1, opts) == {:error, :timeout}
    Peer.close(listener)
    assert Connection.connect("broker.invalid", 1, opts) == {:error, :econnrefused}
  end

  test "a proxy that cannot be used is refused, and its password is not shown" do
    for proxy <- ["https://a:secret@b:1", "socks5://a:secret@b:1", "b:1", "http://", :none] do
      error =
        assert_raise ArgumentError, fn ->
          Network.start_link(self(), "localhost", 1, proxy: proxy)
        end

      refute Exception.message(error) =~ "secret"
    end
  end
end
