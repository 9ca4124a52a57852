defmodule Barytherium.TailTest do
  # It changes the level of the log and the handling of signals, and captures stderr.
  use Barytherium.ClientCase, async: false

  import ExUnit.CaptureIO

  alias Barytherium.{Certificates, Directory, Tail}
  alias Barytherium.Tail.{Options, Session, Terminal}

  @pipe %Terminal{live: false, colors: false}

  setup do
    # A test that fails stops the program before it has set the level back.
    %{level: level} = :logger.get_primary_config()
    on_exit(fn -> :logger.set_primary_config(:level, level) end)
  end

  # Runs in a task, which returns `{status, stdout, stderr}`.
  defp tail(args) do
    Task.async(fn ->
      run = fn -> Tail.run(args, "tail", @pipe) end
      {{status, stdout}, stderr} = with_io(:stderr, fn -> with_io(run) end)
      {status, stdout, stderr}
    end)
  end

  defp subscribed(peer) do
    {headers, _body} = confirm(peer, :subscribe)
    headers
  end

  # Expects the end of a session with these subscriptions.
  defp orderly_end(peer, ids) do
    ended = for _id <- ids, {headers, _body} = confirm(peer, :unsubscribe), do: headers["id"]
    assert Enum.sort(ended) == Enum.sort(ids)
    disconnect(peer)
  end

  # A session that gets one message, "hello", and ends.
  defp one_message(listener) do
    peer = accept_connected(listener)
    id = subscribed(peer)["id"]
    message(peer, id, "hello")
    orderly_end(peer, [id])
  end

  test "--trace shows all frames, and no password" do
    {listener, url} = broker("me:hunter2@")
    tail = tail([url <> "/queue/a", "--count", "1", "--trace"])
    one_message(listener)
    {0, stdout, stderr} = Task.await(tail)
    assert stdout =~ "hello"
    refute stdout =~ "SUBSCRIBE"
    assert stderr =~ ~r/^> CONNECT host:\/ .*login:\.\.\. passcode:\.\.\.$/m
    assert stderr =~ ~r/^< CONNECTED version:1.2$/m
    assert stderr =~ ~r/^> SUBSCRIBE id:.* destination:\/queue\/a /m
    assert stderr =~ ~r/^< MESSAGE .* \(5 bytes\)$/m
    refute stderr =~ "hunter2"
  end

  test "shows the messages of several destinations, and acknowledges none" do
    {listener, url} = broker()
    tail = tail([url <> "/queue/a", "/topic/b", "--count", "3", "--header", "selector:a > 1"])
    peer = accept_connected(listener)

    queue = subscribed(peer)
    assert %{"destination" => "/queue/a", "ack" => "client-individual"} = queue
    # No more are taken from a queue than are shown.
    assert queue["prefetch-count"] == "3"
    topic = subscribed(peer)
    assert %{"destination" => "/topic/b", "ack" => "auto"} = topic
    for headers <- [queue, topic], do: assert(headers["selector"] == "a > 1")
    ids = [queue["id"], topic["id"]]

    for {body, id} <- Enum.zip(["one", "two"], ids), do: message(peer, id, body)
    message(peer, hd(ids), "three")
    orderly_end(peer, ids)
    assert {0, stdout, stderr} = Task.await(tail)
    for body <- ~w(one two three), do: assert(stdout =~ "\n\n#{body}\n\n")
    assert stderr =~ "Connected to #{url}: a server without a name, STOMP 1.2"
    assert stderr =~ "Up to 3 messages of /queue/a will be delivered to this program"
    assert stderr =~ "3 messages, 11 B of bodies"
  end

  test "acknowledges what it shows with --ack" do
    {listener, url} = broker()
    tail = tail([url <> "/queue/a", "--count", "1", "--ack"])
    peer = accept_connected(listener)
    %{"id" => id, "prefetch-count" => "100"} = subscribed(peer)
    message(peer, id, "one")
    # This one is one too many.
    message(peer, id, "two")
    assert {%{"id" => "a-one"}, _body} = expect(peer, :ack)
    orderly_end(peer, [id])
    assert {0, stdout, _stderr} = Task.await(tail)
    assert stdout =~ "\n\none\n"
    refute stdout =~ "two"
  end

  test "connects again" do
    {listener, url} = broker()
    tail = tail([url <> "/queue/a", "--count", "2", "--format", "raw"])
    peer = accept_connected(listener)
    message(peer, subscribed(peer)["id"], <<0, 0xE9, 0xFF>>)
    Peer.close(peer)
    peer = accept_connected(listener)
    id = subscribed(peer)["id"]
    message(peer, id, "two")
    orderly_end(peer, [id])
    assert {0, stdout, stderr} = Task.await(tail)
    assert stdout == <<0, 0xE9, 0xFF>> <> "two"
    assert stderr =~ "Disconnected: the connection was closed (closed). Connecting again\n"
    assert stderr =~ "Connected again\n"
  end

  test "--save appends what came" do
    directory = Directory.make!()
    path = Path.join(directory, "saved")
    File.write!(path, "before\n")
    {listener, url} = broker()
    tail = tail([url <> "/queue/a", "--count", "1", "--save", path])
    one_message(listener)
    assert {0, _stdout, stderr} = Task.await(tail)
    assert stderr =~ "saved in #{path}"
    assert ["before", line, ""] = String.split(File.read!(path), "\n")
    assert line =~ ~s("body_base64":"#{Base.encode64("hello")}"})
  end

  test "a file that cannot be written is an error" do
    assert {1, "", "Error: cannot write to /no/file: enoent\n"} =
             Task.await(tail(["stomp://localhost/a", "--save", "/no/file"]))
  end

  test "a file that becomes full is an error" do
    if File.exists?("/dev/full") do
      {listener, url} = broker()
      tail = tail([url <> "/queue/a", "--save", "/dev/full"])
      one_message(listener)
      assert {1, "", stderr} = Task.await(tail)
      assert stderr =~ "Error: cannot write to /dev/full: enospc"
    end
  end

  test "the first connection has to succeed" do
    {listener, url} = broker()
    Peer.close(listener)

    expected = "Error: cannot connect to #{url}: connection refused (econnrefused)\n"

    assert {1, "", ^expected} = Task.await(tail([url <> "/queue/a"]))
  end

  test "a broker that refuses is an error, and its text is harmless" do
    {listener, url} = broker()
    tail = tail([url <> "/queue/a"])
    {peer, _connect} = accept(listener)
    reply(peer, :error, [{"message", "no\e[2J"}])
    Peer.close(peer)
    assert {1, "", stderr} = Task.await(tail)
    assert stderr =~ ~r/\AError: cannot connect to #{url}: the broker says: no\\x1b\[2J\n/
    assert [_before, _after] = String.split(stderr, "the broker says")
    assert stderr =~ "The virtual host was /; ?host=name at the end of the URL changes it."
    refute stderr =~ "\e"
  end

  test "a subscription that is refused is an error" do
    {listener, url} = broker()
    tail = tail([url <> "/queue/a"])
    peer = accept_connected(listener)
    {headers, _body} = expect(peer, :subscribe)
    reply(peer, :error, [{"message", "denied"}, {"receipt-id", headers["receipt"]}])
    Peer.close(peer)
    assert {1, "", stderr} = Task.await(tail)
    assert stderr =~ "Error: cannot subscribe to /queue/a: the broker says: denied\n"
  end

  test "the password comes from STOMP_PASSCODE if the URL has only a user" do
    System.put_env("STOMP_PASSCODE", "hunter2")
    on_exit(fn -> System.delete_env("STOMP_PASSCODE") end)

    for {userinfo, passcode} <- [{"me@", "hunter2"}, {"me:other@", "other"}, {"", nil}] do
      {listener, url} = broker(userinfo)
      tail = tail([url <> "/queue/a", "--count", "1"])
      {peer, connect} = accept(listener)
      assert Frame.headers_to_map(connect.headers)["passcode"] == passcode
      reply(peer, :connected, [{"version", "1.2"}])
      id = subscribed(peer)["id"]
      message(peer, id, "hello")
      orderly_end(peer, [id])
      assert {0, stdout, stderr} = Task.await(tail)
      refute stdout <> stderr =~ "hunter2"
    end
  end

  test "no state shows the password" do
    {listener, url} = broker("me@")
    {:ok, options} = Options.parse([url <> "/queue/a"])
    {:ok, session} = Session.start(options, @pipe, fn -> "hunter2" end)
    {_peer, connect} = accept(listener)
    assert Frame.headers_to_map(connect.headers)["passcode"] == "hunter2"
    refute inspect(:sys.get_status(session), limit: :infinity) =~ "hunter2"
    GenServer.stop(session)
  end

  test "does not trust an unknown certificate unless told to" do
    directory = Directory.make!()
    certificates = Certificates.make(["localhost"])
    %{cacertfile: cacertfile} = Certificates.write!(certificates, directory)
    mode = [mode: :binary, active: false, ip: {127, 0, 0, 1}, log_level: :none]
    {:ok, listener} = :ssl.listen(0, mode ++ certificates.server)
    {:ok, {_address, port}} = :ssl.sockname(listener)
    url = "stomp+ssl://localhost:#{port}/queue/a"

    tail = tail([url])
    {:ok, socket} = :ssl.transport_accept(listener)
    assert {:error, _alert} = :ssl.handshake(socket, 5_000)

    assert {1, "", stderr} = Task.await(tail)
    assert stderr =~ ~r{cannot connect to stomp\+ssl://localhost:\d+: .*\(unknown_ca\)\n}

    for args <- [["--cacertfile", cacertfile], ["--insecure"]] do
      tail = tail([url, "--count", "1" | args])
      one_message(listener)
      assert {0, stdout, _stderr} = Task.await(tail)
      assert stdout =~ "\n\nhello\n"
    end
  end

  test "shows a feed of its own, and ends by itself" do
    assert {0, stdout, stderr} = Task.await(tail(~w(--seconds 1 --rate 1000 --size 10)))
    assert stdout =~ "==> /topic/feed <=="
    assert stdout =~ "\n\nxxxxxxxxxx\n"
    assert stderr =~ "A feed in this VM: 1000 messages/s of 10 bytes"
    assert stderr =~ ~r/\d+ messages, .* of bodies in \d/
  end

  test "help, and mistakes" do
    assert {0, help, ""} = Task.await(tail(["--help"]))
    assert help =~ "tail URL [DESTINATION...]"
    refute help =~ "COMMAND"
    {:ok, options} = File.read("lib/barytherium/tail/options.ex")

    for [_all, name] <- Regex.scan(~r/^    (\w+): :(?:boolean|integer|string|keep)/m, options),
        name != "help" do
      assert help =~ "--#{name}"
    end

    assert {2, "", stderr} = Task.await(tail(["--frobnicate"]))
    assert stderr =~ "unknown option --frobnicate"
    assert stderr =~ "See tail --help"
  end
end
