defmodule Barytherium.PublishAsyncTest do
  use Barytherium.ClientCase, async: true

  alias Barytherium.{Error, TestBroker}

  defp client(url, opts \\ []) do
    {:ok, client} = Client.start_link([url: url, backoff: {10, 20}] ++ opts)
    client
  end

  defp connected(opts \\ []) do
    {listener, url} = broker()
    client = client(url, opts)
    peer = accept_connected(listener)
    eventually(fn -> Client.status(client).state == :connected end)
    {client, peer, listener}
  end

  defp receipt(peer, headers), do: reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])

  test "the result is a message" do
    {client, peer, _listener} = connected()
    {:ok, reference} = Client.publish_async(client, "/queue/a", "x", headers: [{"n", "1"}])

    assert {%{"destination" => "/queue/a", "persistent" => "true", "n" => "1"} = headers, "x"} =
             expect(peer, :send)

    refute_received {:barytherium, :published, _result}
    assert %{publishing: 1, unconfirmed: 1} = Client.status(client)
    receipt(peer, headers)
    assert_receive {:barytherium, :published, {^reference, :ok}}
    assert %{publishing: 0, unconfirmed: 0} = Client.status(client)
  end

  test "a list has one result, when all is confirmed, in whatever order" do
    {client, peer, _listener} = connected()
    {:ok, reference} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
    sent = for n <- 1..3, do: {elem(expect(peer, :send), 0), n}
    for {headers, _n} <- Enum.reverse(tl(sent)), do: receipt(peer, headers)
    refute_receive {:barytherium, :published, _result}, 50
    receipt(peer, sent |> hd() |> elem(0))
    assert_receive {:barytherium, :published, {^reference, :ok}}
    assert {:ok, empty} = Client.publish_many_async(client, [])
    assert_received {:barytherium, :published, {^empty, :ok}}
  end

  test "another process, or nobody, may get the result" do
    {client, peer, _listener} = connected()
    other = Task.async(fn -> assert_receive {:barytherium, :published, {_reference, :ok}} end)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "x", to: other.pid)
    confirm(peer, :send)
    Task.await(other)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "x", to: :nobody)
    flushing = Task.async(fn -> Client.flush(client) end)
    confirm(peer, :send)
    assert Task.await(flushing) == :ok
    refute_received {:barytherium, :published, _result}
  end

  test "publishing waits while the window is full, and goes on in order" do
    {client, peer, _listener} = connected(publish_window: 1_500)
    parent = self()

    publishing =
      Task.async(fn ->
        for n <- 1..20 do
          {:ok, _reference} = Client.publish_async(client, "/queue/a", "#{n}", to: parent)
          send(parent, {:accepted, n})
        end
      end)

    assert_receive {:accepted, 3}
    refute_receive {:accepted, 4}, 50

    assert {:error, %Error{reason: :not_written}} =
             Client.publish_async(client, "/queue/a", "late", timeout: 50)

    bodies = for _n <- 1..20, do: elem(confirm(peer, :send), 1)
    assert bodies == for(n <- 1..20, do: "#{n}")
    Task.await(publishing)
    assert Client.flush(client) == :ok
  end

  test "a message larger than the window is accepted alone" do
    {client, peer, _listener} = connected(publish_window: 1_000)
    {:ok, reference} = Client.publish_async(client, "/queue/a", String.duplicate("x", 100_000))

    assert {:error, %Error{reason: :not_written}} =
             Client.publish_async(client, "/queue/a", "y", timeout: 20)

    confirm(peer, :send)
    assert_receive {:barytherium, :published, {^reference, :ok}}
  end

  test "small messages do not overtake large ones" do
    {client, peer, _listener} = connected(publish_window: 100_000_000)
    sizes = for n <- 1..40, do: if(rem(n, 3) == 0, do: 2_000_000, else: 10)

    for {size, n} <- Enum.with_index(sizes) do
      body = String.pad_leading("#{n}", size)
      {:ok, _reference} = Client.publish_async(client, "/queue/a", body)
    end

    assert for(_size <- sizes, do: peer |> confirm(:send) |> elem(1) |> String.trim()) ==
             for({_size, n} <- Enum.with_index(sizes), do: "#{n}")
  end

  test "flush/2 waits for what was accepted before" do
    {client, peer, _listener} = connected()
    assert Client.flush(client) == :ok
    {:ok, first} = Client.publish_async(client, "/queue/a", "1")
    {first_headers, _body} = expect(peer, :send)
    assert {:error, %Error{reason: :timeout}} = Client.flush(client, 20)
    flushing = Task.async(fn -> Client.flush(client) end)
    eventually(fn -> match?([{_, _, _}], flushes(client)) end)
    {:ok, second} = Client.publish_async(client, "/queue/a", "2")
    {second_headers, _body} = expect(peer, :send)
    receipt(peer, second_headers)
    assert_receive {:barytherium, :published, {^second, :ok}}
    refute Task.yield(flushing, 20)
    receipt(peer, first_headers)
    assert Task.await(flushing) == :ok
    assert_receive {:barytherium, :published, {^first, :ok}}
  end

  defp flushes(client), do: elem(:sys.get_state(client), 1).spool.flushes

  describe "without a spool" do
    test "nothing is accepted without a connection" do
      {listener, url} = broker()
      Peer.close(listener)
      client = client(url, listener: self(), backoff: {60_000, 60_000})
      # It may still be connecting.
      {:ok, _reference} = Client.publish_async(client, "/queue/a", "x", to: :nobody)
      assert_receive {:barytherium, :client, {{:connection_failure, _error}, ^client}}

      assert {:error, %Error{reason: :disconnected}} =
               Client.publish_async(client, "/queue/a", "x")

      assert Client.flush(client) == :ok
    end

    test "what is accepted while the client connects is written then, or fails" do
      {listener, url} = broker()
      client = client(url, listener: self(), backoff: {60_000, 60_000})
      {peer, _connect} = accept(listener)
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      reply(peer, :connected, [{"version", "1.2"}])
      confirm(peer, :send)
      assert_receive {:barytherium, :published, {^reference, :ok}}

      {listener, url} = broker()
      client = client(url, backoff: {60_000, 60_000})
      {peer, _connect} = accept(listener)
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      Peer.close(peer)

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :disconnected}}}}
    end

    test "what was written fails with the connection, and only that" do
      {client, peer, listener} = connected()
      {:ok, first} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
      {:ok, second} = Client.publish_async(client, "/queue/a", "x")
      confirm(peer, :send)
      expect(peer, :send)
      confirm(peer, :send)
      expect(peer, :send)
      Peer.close(peer)

      assert_receive {:barytherium, :published,
                      {^first, {:error, %Error{reason: :unconfirmed}, [1]}}}

      assert_receive {:barytherium, :published, {^second, {:error, %Error{reason: :unconfirmed}}}}
      peer = accept_connected(listener)
      {:ok, third} = Client.publish_async(client, "/queue/a", "y")
      assert {_headers, "y"} = confirm(peer, :send)
      assert_receive {:barytherium, :published, {^third, :ok}}
    end

    test "an ERROR that names a message refuses only that one" do
      {client, peer, _listener} = connected()

      {:ok, reference} =
        Client.publish_many_async(client, for(n <- 0..2, do: {"/queue/a", "#{n}"}))

      [first, second, third] = for _n <- 1..3, do: elem(expect(peer, :send), 0)
      receipt(peer, first)
      reply(peer, :error, [{"receipt-id", second["receipt"]}, {"message", "no"}])
      receipt(peer, third)

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :refused}, [1]}}}
    end

    test "an ERROR that names none refuses all" do
      {client, peer, _listener} = connected()
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      expect(peer, :send)
      reply(peer, :error, [{"message", "no"}])

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :refused, frame: frame}}}}

      assert Frame.header(frame, "message") == "no"
    end

    test "a header that this version cannot escape fails alone" do
      {listener, url} = broker()
      client = client(url)
      peer = accept_connected(listener, [{"version", "1.0"}])
      good = {"/queue/a", "good"}
      bad = {"/queue/a", "bad", [{"name", "a\nb"}]}
      {:ok, mixed} = Client.publish_many_async(client, [good, bad, good])
      {:ok, other} = Client.publish_async(client, "/queue/a", "good")
      for _n <- 1..3, do: assert({_headers, "good"} = confirm(peer, :send))

      assert_receive {:barytherium, :published,
                      {^mixed, {:error, %Error{reason: :unescapable}, [1]}}}

      assert_receive {:barytherium, :published, {^other, :ok}}
    end

    test "close/2 waits for the results" do
      {client, peer, _listener} = connected()
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      closing = Task.async(fn -> Client.close(client) end)
      confirm(peer, :send)
      disconnect(peer)
      assert Task.await(closing) == :ok
      assert_received {:barytherium, :published, {^reference, :ok}}
    end

    test "a client that is stopped says that it does not know" do
      {client, peer, _listener} = connected()
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      expect(peer, :send)
      Process.unlink(client)
      Process.exit(client, :shutdown)

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :unconfirmed}}}}
    end
  end

  describe "with spool: :memory" do
    test "what is not confirmed is sent again on the next connection, in order" do
      {client, peer, listener} = connected(spool: :memory)
      {:ok, first} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
      {:ok, second} = Client.publish_async(client, "/queue/a", "4")
      confirm(peer, :send)
      expect(peer, :send)
      confirm(peer, :send)
      # Otherwise the end would be a reset, and discard receipts.
      expect(peer, :send)
      Peer.close(peer)
      eventually(fn -> Client.status(client).state != :connected end)
      {:ok, third} = Client.publish_async(client, "/queue/a", "5")
      peer = accept_connected(listener)
      assert for(_n <- 1..3, do: elem(confirm(peer, :send), 1)) == ["2", "4", "5"]

      for reference <- [first, second, third],
          do: assert_receive({:barytherium, :published, {^reference, :ok}})
    end

    test "messages are accepted before there is a connection" do
      {listener, url} = broker()
      Peer.close(listener)
      client = client(url, spool: :memory, listener: self())
      assert_receive {:barytherium, :client, {{:connection_failure, _error}, ^client}}
      {:ok, _reference} = Client.publish_async(client, "/queue/a", "x")
      assert %{publishing: 1} = Client.status(client)
      Process.unlink(client)
      Client.close(client)

      assert_receive {:barytherium, :published,
                      {_reference, {:error, %Error{reason: :unconfirmed}}}}
    end

    test "one that is refused without its name is found, and the others are sent" do
      {client, peer, listener} = connected(spool: :memory, listener: self())
      references = for n <- 1..5, do: elem(Client.publish_async(client, "/queue/a", "#{n}"), 1)
      refuse_third(peer, listener)

      for {reference, n} <- Enum.with_index(references, 1),
          n != 3,
          do: assert_receive({:barytherium, :published, {^reference, :ok}})

      third = Enum.at(references, 2)
      assert_receive {:barytherium, :published, {^third, {:error, %Error{reason: :refused}}}}

      assert_receive {:barytherium, :client,
                      {{:not_published, %{frame: %Frame{body: "3"}, error: %Error{}}}, ^client}}

      assert %{publishing: 0} = Client.status(client)
    end

    # A broker that refuses the third message, as one does that ends the connection and does not say why.
    defp refuse_third(peer, listener) do
      case expect(peer, :send) do
        {_headers, "3"} ->
          reply(peer, :error, [{"message", "no"}])
          Peer.close(peer)
          listener |> accept_connected() |> refuse_third(listener)

        {headers, body} ->
          # The receipt of the second one is lost with the connection the first time.
          unless body == "2" and Process.put(:lost, true) == nil, do: receipt(peer, headers)
          if body != "5", do: refuse_third(peer, listener)
      end
    end

    for error <- [:always, :alone] do
      # Where it is lost otherwise: the broker closes before it has read everything.
      test "refused messages among many are found in a few connections (an ERROR: #{error})" do
        {client, peer, listener} = connected(spool: :memory)
        refused = ["1", "3000", "3001", "5000"]

        lists =
          for list <- Enum.chunk_every(1..5_000, 7), do: for(n <- list, do: {"/queue/a", "#{n}"})

        for list <- lists, do: {:ok, _reference} = Client.publish_many_async(client, list)
        broker = Task.async(fn -> refuse(peer, listener, refused, unquote(error)) end)
        :ok = :gen_tcp.controlling_process(peer, broker.pid)
        assert Client.flush(client, 20_000) == :ok

        results =
          for _list <- lists do
            assert_received {:barytherium, :published, {_reference, result}}
            result
          end

        assert [{:error, _, [0]}, {:error, _, [3, 4]}, {:error, _, [1]}] =
                 Enum.reject(results, &(&1 == :ok))

        # For each of them three connections on which it is alone, and those before, with 5,000, 312, 19 and 1 messages, and
        # without an ERROR one more, on which something before it is confirmed.
        assert Client.status(client).connections <= 4 * 8
        Task.shutdown(broker, :brutal_kill)
      end
    end

    defp refuse(peer, listener, refused, error) do
      {:ok, data} = Barytherium.Connection.recv(peer, 0, 20_000)
      {:ok, frames, state} = Frame.parse_all(data, Process.get(peer) || Frame.parse_state())
      Process.put(peer, state)
      {good, bad} = Enum.split_while(frames, &(&1.body not in refused))

      for frame <- good,
          do: reply(peer, :receipt, [{"receipt-id", Frame.header(frame, "receipt")}])

      if bad == [] do
        refuse(peer, listener, refused, error)
      else
        if error == :always or length(frames) == 1, do: reply(peer, :error, [{"message", "no"}])
        # Reads the rest, so that the end is no reset.
        :gen_tcp.shutdown(peer, :write)
        read_all(peer)
        listener |> accept_connected() |> refuse(listener, refused, error)
      end
    end

    defp read_all(peer) do
      case Barytherium.Connection.recv(peer, 0, 20_000) do
        {:ok, _data} -> read_all(peer)
        {:error, :closed} -> Peer.close(peer)
      end
    end

    test "a list that is suspect is not overtaken" do
      {client, peer, listener} = connected(spool: :memory)
      {:ok, _list} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
      expect(peer, :send)
      reply(peer, :error, [{"message", "no"}])
      Peer.close(peer)
      eventually(fn -> Client.status(client).state != :connected end)
      for n <- 4..6, do: {:ok, _reference} = Client.publish_async(client, "/queue/a", "#{n}")
      peer = accept_connected(listener)
      assert for(_n <- 1..6, do: elem(confirm(peer, :send), 1)) == ~w(1 2 3 4 5 6)
    end

    test "one that is refused is found beside other requests, after more attempts" do
      {client, peer, listener} = connected(spool: :memory)
      # It never gets an answer.
      waiting = Task.async(fn -> keep_asking(client) end)
      {:ok, bad} = Client.publish_async(client, "/queue/a", "bad")
      {:ok, good} = Client.publish_async(client, "/queue/a", "good")
      broker = Task.async(fn -> refuse_bad(peer, listener) end)
      :ok = :gen_tcp.controlling_process(peer, broker.pid)
      assert_receive {:barytherium, :published, {^bad, {:error, %Error{reason: :refused}}}}
      assert_receive {:barytherium, :published, {^good, :ok}}
      for task <- [waiting, broker], do: Task.shutdown(task, :brutal_kill)
    end

    defp keep_asking(client) do
      Client.request(client, "/queue/a", "question", timeout: 1_000, wait: true)
      keep_asking(client)
    end

    defp refuse_bad(peer, listener) do
      case next_frame(peer) do
        %Frame{command: :send, body: "bad"} ->
          reply(peer, :error, [{"message", "no"}])
          Peer.close(peer)
          listener |> accept_connected() |> refuse_bad(listener)

        %Frame{command: :send, body: "good"} = frame ->
          receipt(peer, %{"receipt" => Frame.header(frame, "receipt")})
          refuse_bad(peer, listener)

        _other ->
          refuse_bad(peer, listener)
      end
    end

    test "an ERROR that concerns something else loses nothing" do
      {client, peer, listener} = connected(spool: :memory)
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")

      peer =
        for _n <- 1..2, reduce: peer do
          peer ->
            expect(peer, :send)
            reply(peer, :error, [{"message", "the broker stops"}])
            Peer.close(peer)
            accept_connected(listener)
        end

      confirm(peer, :send)
      assert_receive {:barytherium, :published, {^reference, :ok}}
    end
  end

  test "a consumer's callback may publish without waiting, and gets the results" do
    defmodule Forwarder do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_connected(info, test), do: {:ok, {test, info.client}}

      @impl true
      def handle_message(message, {_test, client} = state) do
        {:ok, _reference} = Client.publish_async(client, "/queue/b", message.body)
        {:ack, state}
      end

      @impl true
      def handle_info({:barytherium, :published, {_reference, result}}, {test, _client} = state) do
        send(test, {:forwarded, result})
        {:ok, state}
      end
    end

    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    start_supervised!({Forwarder, url: url, init_arg: self()})
    TestBroker.await_subscription(broker, "/queue/a")
    TestBroker.publish(broker, "/queue/a", "x")
    assert_receive {:forwarded, :ok}
  end

  test "callers that have ended while they waited for room are left out" do
    {client, peer, _listener} = connected(publish_window: 1)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "first")
    parent = self()

    waiting =
      for body <- ["of the dead", "second"] do
        spawn(fn -> send(parent, {body, Client.publish_async(client, "/queue/a", body)}) end)
      end

    eventually(fn -> map_size(elem(:sys.get_state(client), 1).spool.blocked.entries) == 2 end)
    Process.exit(hd(waiting), :kill)
    eventually(fn -> map_size(elem(:sys.get_state(client), 1).spool.blocked.entries) == 1 end)
    assert {_headers, "first"} = confirm(peer, :send)
    assert {_headers, "second"} = confirm(peer, :send)
    assert_receive {"second", {:ok, _reference}}
    assert_silent(peer)
  end

  test "a client survives strange receipts, and messages that are not for it" do
    {client, peer, _listener} = connected()
    send(client, {:spool, :x})
    {:ok, reference} = Client.publish_many_async(client, [{"/queue/a", "1"}, {"/queue/a", "2"}])
    {%{"receipt" => id}, "1"} = expect(peer, :send)
    [number, "0"] = String.split(id, ".")
    reply(peer, :error, [{"receipt-id", number <> ".7"}])

    assert_receive {:barytherium, :published,
                    {^reference, {:error, %Error{reason: :refused}, [0, 1]}}}

    assert Process.alive?(client)
  end

  test "mistakes are said" do
    {client, _peer, _listener} = connected()

    for {text, mistake} <- [
          {"the destination is a string", fn -> Client.publish_async(client, "", "x") end},
          {"not a list of messages", fn -> Client.publish_many_async(client, :x) end},
          {"not a list of messages",
           fn -> Client.publish_many_async(client, [{"/queue/a", "x"} | :y]) end},
          {"a pid or :nobody", fn -> Client.publish_async(client, "/queue/a", "x", to: :x) end},
          {"nearest that there is: :timeout",
           fn -> Client.publish_async(client, "/queue/a", "x", timeuot: 1) end},
          {":memory or the path of a directory",
           fn -> Client.start_link(url: "stomp://a", spool: :disk) end},
          {"not a time-out", fn -> Client.flush(client, :infinity) end}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(text)}/, mistake
    end
  end
end
