defmodule Barytherium.WebSocketClientTest do
  @moduledoc "What the URL and the options of a client make of the opening handshake and of CONNECT."
  use Barytherium.ClientCase, async: true

  alias Barytherium.Client.Endpoint

  # The request of the opening handshake, and the headers of CONNECT.
  defp greeting(path, opts) do
    listener = Peer.listen(:ws)
    url = "ws://me:p%40ss@localhost:#{Peer.port(listener)}#{path}"
    start_supervised!({Client, [url: url] ++ opts}, id: make_ref())
    peer = Peer.accept(listener, :ws)
    {{line, headers}, {connect, ""}} = {peer.request, expect(peer, :connect)}
    {line, headers, connect}
  end

  test "path and query are the WebSocket's, and the virtual host is an option" do
    {line, headers, connect} = greeting("/a%20b?c=d%26", vhost: "v")
    assert line == "GET /a%20b?c=d%26 HTTP/1.1"
    refute Map.has_key?(headers, "authorization")
    assert %{"host" => "v", "login" => "me", "passcode" => "p@ss"} = connect
    assert {"GET / HTTP/1.1", _headers, %{"host" => "/"}} = greeting("", [])
    assert {"GET /?a HTTP/1.1", _headers, _connect} = greeting("?a", [])
  end

  test "the login can be in the opening handshake, with other headers" do
    opts = [login_in: :upgrade, upgrade_headers: fn -> [{"cookie", "a=b"}] end]
    {_line, headers, connect} = greeting("/", opts)
    assert headers["authorization"] == "Basic " <> Base.encode64("me:p@ss")
    assert headers["cookie"] == "a=b"
    refute Map.has_key?(connect, "login") or Map.has_key?(connect, "passcode")
  end

  test "a function that gives no headers is an attempt that failed, and shows nothing" do
    for headers <- [fn -> raise "hunter2" end, fn -> [{"a", "hunter2\r\nb: c"}] end] do
      log =
        capture_log(fn ->
          opts = [url: "ws://localhost:1", upgrade_headers: headers, max_attempts: 1]
          Process.flag(:trap_exit, true)
          {:ok, client} = Client.start_link(opts)
          assert_receive {:EXIT, ^client, {:shutdown, {:max_attempts, :upgrade_headers}}}
        end)

      assert log =~ "the function for :upgrade_headers failed"
      refute log =~ "hunter2"
    end
  end

  test "credentials that cannot be had are the same failure wherever they are to be sent" do
    for login_in <- [:connect, :upgrade],
        login <- [fn -> raise "hunter2" end, fn -> :no_string end, fn -> Process.sleep(5_000) end] do
      opts = [url: "ws://localhost:1", login: login, login_in: login_in, credentials_timeout: 100]

      log =
        capture_log(fn ->
          Process.flag(:trap_exit, true)
          {:ok, client} = Client.start_link([max_attempts: 1] ++ opts)
          assert_receive {:EXIT, ^client, {:shutdown, {:max_attempts, :credentials}}}
        end)

      refute log =~ "hunter2"
    end
  end

  test "a login that cannot be in the handshake, one that is missing, and the user's own" do
    log =
      capture_log(fn ->
        Process.flag(:trap_exit, true)
        opts = [url: "ws://localhost:1", login: "a:b", login_in: :upgrade, max_attempts: 1]
        {:ok, client} = Client.start_link(opts)
        assert_receive {:EXIT, ^client, {:shutdown, {:max_attempts, :credentials}}}
      end)

    assert log =~ "a login with a colon cannot be in the opening handshake"
    own = [upgrade_headers: [{"Authorization", "Bearer x"}], login_in: :upgrade]
    assert {_line, %{"authorization" => "Bearer x"}, _connect} = greeting("/", own)
    listener = Peer.listen(:ws)
    url = "ws://localhost:#{Peer.port(listener)}"
    start_supervised!({Client, url: url, login_in: :upgrade}, id: make_ref())
    {_line, headers} = Peer.accept(listener, :ws).request
    refute Map.has_key?(headers, "authorization")
  end

  test "a token in the path is not shown" do
    opts = [url: "ws://h/ws?token=hunter2"]
    client = start_supervised!({Client, opts})
    refute inspect(:sys.get_state(client), limit: :infinity) =~ "hunter2"

    error =
      assert_raise ArgumentError, fn ->
        Barytherium.Network.start_link(self(), "h", 1, websocket: "/ws?token=hunter2 x")
      end

    refute Exception.message(error) =~ "hunter2"
  end

  test "ports and schemes" do
    for {url, port, secure} <- [
          {"ws://h", 80, false},
          {"wss://h", 443, true},
          {"ws://[::1]:1/", 1, false},
          {"ws://h/ws?user=a@b", 80, false},
          {"ws://u:p@h/@me", 80, false},
          {"ws://u:p@h?a:", 80, false}
        ] do
      assert {:ok, %{port: ^port, secure: ^secure} = endpoint} = Endpoint.parse(url)
      assert Endpoint.to_string(endpoint) =~ ~r{^#{url |> URI.parse() |> Map.get(:scheme)}://}
    end

    for opts <- [
          [url: "stomp://h", login_in: :upgrade],
          [url: "stomp://h", upgrade_headers: []],
          [url: "ws://h", websocket: "/a"],
          [url: "ws://h", ssl: [verify: :verify_none]]
        ] do
      assert_raise ArgumentError, fn -> Client.start_link(opts) end
    end
  end

  test "options for a WebSocket do not disturb a broker without" do
    {listener, url} = broker()
    opts = [urls: [url, "ws://h"], upgrade_headers: [{"a", "b"}], login_in: :upgrade, login: "me"]
    start_supervised!({Client, opts})
    {_peer, connect} = accept(listener)
    assert Frame.header(connect, "login") == "me"
  end
end
