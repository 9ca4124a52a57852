defmodule Barytherium.ClientTest do
  use Barytherium.ClientCase, async: true

  import Barytherium.Untyped

  # Waits that a test can sit out.
  @backoff [backoff: {20, 100}]

  # A client, its connection to the scripted broker, and the listener.
  defp connected(opts \\ [], headers \\ [{"version", "1.2"}]) do
    {listener, url} = broker()
    opts = Keyword.merge(@backoff, opts)
    client = start_supervised!({Client, [url: url, listener: self()] ++ opts})
    peer = accept_connected(listener, headers)
    assert_receive {:barytherium, :client, {{:connected, _info}, ^client}}
    {client, peer, listener}
  end

  defp lost(client) do
    assert_receive {:barytherium, :client, {{:disconnected, error}, ^client}}
    error.reason
  end

  # Runs a call that needs the broker's answer.
  defp async(call), do: Task.async(call)

  describe "CONNECT" do
    test "has the virtual host, the versions, heart-beats, and the credentials of the URL" do
      {listener, url} = broker("me:p%40ss@")
      start_supervised!({Client, url: url <> "/%2Fprod", headers: [{"client-id", "7"}]})
      {_peer, frame} = accept(listener)

      assert Frame.headers_to_map(frame.headers) == %{
               "accept-version" => "1.0,1.1,1.2",
               "host" => "/prod",
               "heart-beat" => "10000,10000",
               "login" => "me",
               "passcode" => "p@ss",
               "client-id" => "7"
             }
    end

    test "has credentials from functions, which are called for each connection" do
      {listener, url} = broker()
      {:ok, counter} = Agent.start_link(fn -> 0 end)
      passcode = fn -> "secret#{Agent.get_and_update(counter, &{&1, &1 + 1})}" end
      login = {String, :downcase, ["ME"]}

      start_supervised!(
        {Client,
         [url: url, login: login, passcode: passcode, vhost: "v", versions: ["1.1"]] ++ @backoff}
      )

      for number <- 0..1 do
        {peer, frame} = accept(listener)
        headers = Frame.headers_to_map(frame.headers)
        assert %{"login" => "me", "host" => "v", "accept-version" => "1.1"} = headers
        assert headers["passcode"] == "secret#{number}"
        Peer.close(peer)
      end
    end
  end

  describe "publish" do
    test "returns :ok when the broker's receipt has come" do
      {client, peer, _listener} = connected()
      publish = fn -> Client.publish(client, "/queue/a", ["he", "llo"], headers: [{"a", 1}]) end
      publishing = async(publish)
      {headers, "hello"} = expect(peer, :send)
      assert %{"destination" => "/queue/a", "a" => "1"} = headers
      assert Task.yield(publishing, 50) == nil
      reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])
      assert Task.await(publishing) == :ok
    end

    test "leaves out the content-length, if the body allows that" do
      {client, peer, _listener} = connected()
      opts = [content_length: false, receipt: false]
      assert Client.publish(client, "/queue/a", "text", opts) == :ok
      assert {headers, "text"} = expect(peer, :send)
      refute is_map_key(headers, "content-length")
      assert Client.publish_many(client, [{"/queue/a", "many"}], opts) == :ok
      assert {headers, "many"} = expect(peer, :send)
      refute is_map_key(headers, "content-length")

      opts = [headers: [{"content-length", "4"}]]
      set = ~r/"content-length" of this send is set by the client/
      assert_raise ArgumentError, set, fn -> Client.publish(client, "/queue/a", "text", opts) end
      opts = [content_length: false]

      assert_raise ArgumentError, ~r/has a NUL/, fn ->
        Client.publish(client, "/queue/a", <<0>>, opts)
      end
    end

    test "returns an error when the receipt does not come" do
      {client, peer, _listener} = connected()

      assert Client.publish(client, "/queue/a", "", timeout: 50) ==
               {:error, %Barytherium.Error{reason: :timeout}}

      # A receipt that is too late disturbs nothing.
      confirm(peer, :send)
      publishing = async(fn -> Client.publish(client, "/queue/a", "2") end)
      assert {_headers, "2"} = confirm(peer, :send)
      assert Task.await(publishing) == :ok
    end

    test "returns an error when the connection ends before the receipt" do
      {client, peer, _listener} = connected()
      publishing = async(fn -> Client.publish(client, "/queue/a", "") end)
      expect(peer, :send)
      Peer.close(peer)
      assert Task.await(publishing) == {:error, %Barytherium.Error{reason: :unconfirmed}}
      assert lost(client) == :closed
    end

    test "counts a receipt that came just before the end" do
      {client, peer, _listener} = connected()
      publishing = async(fn -> Client.publish(client, "/queue/a", "") end)
      confirm(peer, :send)
      Peer.close(peer)
      assert Task.await(publishing) == :ok
    end

    test "waits for the first attempt to connect" do
      {listener, url} = broker()
      client = start_supervised!({Client, url: url})
      publishing = async(fn -> Client.publish(client, "/queue/a", "first") end)
      peer = accept_connected(listener)
      assert {_headers, "first"} = confirm(peer, :send)
      assert Task.await(publishing) == :ok
    end

    test "fails when the attempt to connect does, and at once when none is being made" do
      {listener, url} = broker()
      opts = [url: url, backoff: {60_000, 60_000}, listener: self()]
      client = start_supervised!({Client, opts})
      publishing = async(fn -> Client.publish(client, "/queue/a", "", timeout: 60_000) end)
      {peer, _connect} = accept(listener)
      Peer.close(peer)
      assert Task.await(publishing) == {:error, %Barytherium.Error{reason: :disconnected}}
      assert failure(client) == :closed

      assert Client.publish(client, "/queue/a", "", timeout: 60_000) ==
               {:error, %Barytherium.Error{reason: :disconnected}}
    end

    test "waits for a connection as long as it is told to" do
      {listener, url} = broker()
      client = start_supervised!({Client, url: url})
      opts = [wait: true, timeout: 50]

      assert Client.publish(client, "/queue/a", "", opts) ==
               {:error, %Barytherium.Error{reason: :disconnected}}

      publishing = async(fn -> Client.publish(client, "/queue/a", "later", wait: true) end)
      peer = accept_connected(listener)
      assert {_headers, "later"} = confirm(peer, :send)
      assert Task.await(publishing) == :ok
    end

    test "without a receipt returns when the message is written" do
      {client, peer, _listener} = connected()
      assert Client.publish(client, "/queue/a", "x", receipt: false) == :ok
      {headers, "x"} = expect(peer, :send)
      refute Map.has_key?(headers, "receipt")
    end

    test "returns the ERROR frame that names its receipt, and leaves everything else alone" do
      {client, peer, _listener} = connected()

      [first, second] =
        for body <- ["1", "2"], do: async(fn -> Client.publish(client, "/a", body) end)

      sent =
        for _each <- 1..2, into: %{}, do: expect(peer, :send) |> then(fn {h, b} -> {b, h} end)

      receipt = sent["1"]["receipt"]
      reply(peer, :error, [{"receipt-id", receipt}, {"message", "no"}])
      assert {:error, %{reason: :refused, frame: frame}} = Task.await(first)
      assert Frame.headers_to_map(frame.headers)["message"] == "no"
      reply(peer, :receipt, [{"receipt-id", sent["2"]["receipt"]}])
      assert Task.await(second) == :ok
      assert Client.status(client).state == :connected
    end

    # STOMP 1.2, "ERROR": the server must close. Not all of them do.
    test "after an ERROR frame that names nothing everybody gets it, and the connection ends" do
      {client, peer, listener} = connected()
      publishing = async(fn -> Client.publish(client, "/a", "") end)
      expect(peer, :send)
      reply(peer, :error, [{"message", "access_refused"}])
      assert {:error, %Barytherium.Error{reason: :refused}} = Task.await(publishing)
      assert_receive {:barytherium, :client, {{:error, %Frame{}}, ^client}}
      disconnect(peer)
      assert lost(client) == :refused
      accept_connected(listener)
      eventually(fn -> Client.status(client).connections == 2 end)
    end

    test "tells of a header that the negotiated version cannot write" do
      {client, _peer, _listener} = connected([], [{"version", "1.0"}])
      headers = [headers: [{"a", "x\ny"}]]

      assert Client.publish(client, "/a", "", headers) ==
               {:error, %Barytherium.Error{reason: :unescapable}}
    end

    test "raises in the caller for a mistake" do
      {client, _peer, _listener} = connected()

      assert_raise ArgumentError, ~r/the destination is a string/, fn ->
        Client.publish(client, nil, "")
      end

      assert_raise ArgumentError, ~r/neither a binary/, fn ->
        Client.publish(client, "/a", :no)
      end

      assert_raise ArgumentError, ~r/unknown option :reciept; .*:receipt/, fn ->
        Client.publish(client, "/a", "", reciept: false)
      end
    end

    test "refuses headers that the client sets, and other mistakes, in the caller" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      message(peer, id, "x")
      assert_receive {:barytherium, :messages, {[message], _subscription}}

      for mistake <- [
            fn -> Client.publish(client, "/a", "", headers: [{"receipt", "1"}]) end,
            fn -> Client.publish(client, "", "") end,
            fn -> Client.publish_many(client, untyped({"/a", ""})) end,
            fn -> Client.subscribe(client, "/a", headers: [{"id", "1"}]) end,
            fn -> Client.subscribe(client, "/a", headers: [{"selector", {:a}}]) end,
            fn -> Client.unsubscribe(client, 1, -1) end,
            fn -> Client.ack(client, "body") end,
            fn -> Client.ack(client, [message | message]) end,
            fn -> Client.ack(client, %{message | headers: nil}) end,
            fn -> Client.nack(client, message, [{"requeue", %{}}]) end,
            fn -> Client.close(client, :foo) end,
            fn -> Client.start_link(url: "stomp://h", name: "name") end,
            fn -> Client.start_link(url: "stomp://h", headers: [{"client-id", {:x}}]) end
          ],
          do: assert_raise(ArgumentError, mistake)

      assert Client.status(client).state == :connected
      assert_silent(peer)
    end

    test "takes no longer than its time-out when the broker does not read" do
      {client, peer, _listener} = connected(send_buffer: 4_096)
      body = :binary.copy("x", 20_000_000)
      opts = [receipt: false, timeout: 100]
      # The first one is being written. There is no room for the others.
      assert Client.publish(client, "/a", body, opts) ==
               {:error, %Barytherium.Error{reason: :unconfirmed}}

      for opts <- [opts, [timeout: 1_000]] do
        assert Client.publish(client, "/a", body, opts) ==
                 {:error, %Barytherium.Error{reason: :not_written}}
      end

      assert Client.close(client, 100) == {:error, %Barytherium.Error{reason: :timeout}}
      Peer.close(peer)
    end

    test "to a client that has ended is an exit, and to one that ends an error" do
      {client, peer, _listener} = connected()
      publishing = async(fn -> Client.publish(client, "/a", "") end)
      expect(peer, :send)
      stop_supervised!(Client)
      assert Task.await(publishing) == {:error, %Barytherium.Error{reason: :unconfirmed}}
      assert {:noproc, _call} = catch_exit(Client.publish(client, "/a", ""))
    end
  end

  describe "publish_many" do
    test "writes messages together, and returns those that were not confirmed" do
      {client, peer, _listener} = connected()
      messages = for n <- 1..300, do: {"/queue/a", "#{n}", [{"n", n}]}
      publishing = async(fn -> Client.publish_many(client, messages) end)
      for n <- 1..256, do: assert({%{"n" => _}, ^n} = peer |> confirm(:send) |> number())
      sent = for _n <- 257..300, do: expect(peer, :send)
      {headers, "258"} = Enum.at(sent, 1)
      reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])
      Peer.close(peer)
      assert {:error, %Barytherium.Error{reason: :unconfirmed}, left} = Task.await(publishing)
      assert left == List.delete(Enum.drop(messages, 256), {"/queue/a", "258", [{"n", 258}]})
    end

    defp number({headers, body}), do: {headers, String.to_integer(body)}

    test "of none is :ok" do
      {client, _peer, _listener} = connected()
      assert Client.publish_many(client, []) == :ok
    end
  end

  describe "transaction" do
    test "commits what the function has done, on one connection" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      message(peer, id, "in")
      assert_receive {:barytherium, :messages, {[message], _subscription}}

      running =
        async(fn ->
          Client.transaction(client, fn transaction ->
            :ok = Client.publish(transaction, "/queue/b", "out")
            :ok = Client.ack(transaction, message)
            :done
          end)
        end)

      {%{"transaction" => name}, ""} = expect(peer, :begin)
      assert {%{"transaction" => ^name, "destination" => "/queue/b"}, "out"} = expect(peer, :send)
      assert {%{"transaction" => ^name, "id" => "a-in"}, ""} = expect(peer, :ack)
      assert {%{"transaction" => ^name}, ""} = confirm(peer, :commit)
      assert Task.await(running) == {:ok, :done}
    end

    test "is aborted if the function raises, and the caller gets the exception" do
      {client, peer, _listener} = connected()
      raising = fn _transaction -> raise "no" end
      assert_raise RuntimeError, "no", fn -> Client.transaction(client, raising) end
      expect(peer, :begin)
      expect(peer, :abort)
    end

    test "is not committed on another connection" do
      {client, peer, listener} = connected()

      result =
        Client.transaction(client, fn _transaction ->
          Peer.close(peer)
          lost(client)
          accept_connected(listener)
          eventually(fn -> Client.status(client).connections == 2 end)
        end)

      assert result == {:error, %Barytherium.Error{reason: :disconnected}}
    end
  end

  describe "subscribe" do
    test "delivers messages, and is renewed before anything else is written" do
      {client, peer, listener} = connected()

      {_subscription, %{"id" => id} = headers} =
        subscribed(client, peer, headers: [{"selector", "a"}])

      assert %{"destination" => "/queue/a", "ack" => "client-individual", "selector" => "a"} =
               headers

      message(peer, id, "1")
      assert_receive {:barytherium, :messages, {[%Frame{body: "1"}], _subscription}}
      Peer.close(peer)
      lost(client)
      publishing = async(fn -> Client.publish(client, "/queue/b", "", wait: true) end)
      peer = accept_connected(listener)
      {%{"id" => renewed}, ""} = confirm(peer, :subscribe)
      assert renewed != id
      confirm(peer, :send)
      assert Task.await(publishing) == :ok
      message(peer, renewed, "2")
      assert_receive {:barytherium, :messages, {[%Frame{body: "2"}], _subscription}}
    end

    test "without a connection is made when there is one" do
      {listener, url} = broker()
      client = start_supervised!({Client, url: url})
      assert {:ok, _subscription} = Client.subscribe(client, "/queue/a")
      peer = accept_connected(listener)
      {%{"id" => id}, ""} = confirm(peer, :subscribe)
      message(peer, id, "x")
      assert_receive {:barytherium, :messages, {[%Frame{body: "x"}], _subscription}}
    end

    for {server, prefetch, durable} <- [
          {"RabbitMQ/3.10.8", %{"prefetch-count" => "5"},
           %{"durable" => "true", "auto-delete" => "false", "x-queue-name" => "me"}},
          {"ActiveMQ/5.17.2", %{"activemq.prefetchSize" => "5"},
           %{"activemq.subscriptionName" => "me"}},
          {"ActiveMQ-Artemis/2.30.0 ActiveMQ Artemis Messaging Engine",
           %{"consumer-window-size" => "5120"}, %{"durable-subscription-name" => "me"}}
        ] do
      test "asks #{server} for prefetching and durability in its words" do
        connected = [{"version", "1.2"}, {"server", unquote(server)}]
        {client, peer, _listener} = connected([], connected)
        {_subscription, headers} = subscribed(client, peer, prefetch: 5, durable: "me")
        common = ["id", "destination", "ack", "receipt"]
        expected = Map.merge(unquote(Macro.escape(prefetch)), unquote(Macro.escape(durable)))
        assert Map.drop(headers, common) == expected
      end
    end

    test "that the broker refuses returns its ERROR frame, and is not renewed" do
      {client, peer, _listener} = connected()
      subscribing = async(fn -> Client.subscribe(client, "/nowhere") end)
      {headers, _body} = expect(peer, :subscribe)
      reply(peer, :error, [{"receipt-id", headers["receipt"]}])
      assert {:error, %Barytherium.Error{reason: :refused}} = Task.await(subscribing)
      assert Client.status(client).subscriptions == 0
    end

    test "that the broker does not answer is taken back" do
      {client, peer, _listener} = connected()

      assert Client.subscribe(client, "/queue/a", timeout: 50) ==
               {:error, %Barytherium.Error{reason: :timeout}}

      {%{"id" => id}, ""} = expect(peer, :subscribe)
      assert {%{"id" => ^id}, ""} = expect(peer, :unsubscribe)
      assert Client.status(client).subscriptions == 0
    end

    test "that cannot be renewed is left out, told, and tried again later" do
      {client, peer, listener} = connected()
      subscribed(client, peer)
      Peer.close(peer)
      lost(client)
      peer = accept_connected(listener)
      {headers, _body} = expect(peer, :subscribe)
      reply(peer, :error, [{"receipt-id", headers["receipt"]}, {"message", "gone"}])
      assert %{destination: "/queue/a", error: %{reason: :refused}} = subscription_failed(client)
      publishing = async(fn -> Client.publish(client, "/queue/b", "") end)
      confirm(peer, :send)
      assert Task.await(publishing) == :ok
      # After half a second at least.
      confirm(peer, :subscribe)
    end

    defp subscription_failed(client) do
      assert_receive {:barytherium, :client, {{:subscription_failed, info}, ^client}}

      info
    end

    test "that is refused without saying so does not take the others with it" do
      {client, peer, listener} = connected()
      for name <- ["a", "bad", "c"], do: subscribed_to(client, peer, "/queue/#{name}")
      Peer.close(peer)
      lost(client)
      # Nobody knows which one it is.
      peer = accept_connected(listener)
      for _n <- 1..3, do: expect(peer, :subscribe)
      refuse(peer)
      # So they come one at a time.
      peer = accept_connected(listener)
      assert {%{"destination" => "/queue/a"}, ""} = confirm(peer, :subscribe)
      assert {%{"destination" => "/queue/bad"}, ""} = expect(peer, :subscribe)
      assert_silent(peer)
      refuse(peer)
      assert %{destination: "/queue/bad"} = subscription_failed(client)
      peer = accept_connected(listener)
      # What is known to be good comes first.
      assert {%{"destination" => "/queue/a"}, ""} = confirm(peer, :subscribe)
      assert {%{"destination" => "/queue/c"}, ""} = confirm(peer, :subscribe)
      eventually(fn -> Client.status(client).unconfirmed == 0 end)
      assert {%{"destination" => "/queue/bad"}, ""} = confirm(peer, :subscribe)
    end

    defp subscribed_to(client, peer, destination) do
      test = self()
      subscribing = async(fn -> Client.subscribe(client, destination, to: test) end)
      confirm(peer, :subscribe)
      assert {:ok, _subscription} = Task.await(subscribing)
    end

    # As RabbitMQ does.
    defp refuse(peer) do
      reply(peer, :error, [{"message", "access_refused"}])
      expect(peer, :disconnect)
      Peer.close(peer)
    end

    test "ends with unsubscribe, or with its process" do
      {client, peer, listener} = connected()
      {subscription, %{"id" => id}} = subscribed(client, peer)
      unsubscribing = async(fn -> Client.unsubscribe(client, subscription) end)
      assert {%{"id" => ^id}, ""} = confirm(peer, :unsubscribe)
      assert Task.await(unsubscribing) == :ok

      assert Client.unsubscribe(client, subscription) ==
               {:error, %Barytherium.Error{reason: :not_subscribed}}

      subscriber = spawn(fn -> Process.sleep(:infinity) end)
      {_subscription, %{"id" => id}} = subscribed(client, peer, to: subscriber)
      Process.exit(subscriber, :kill)
      assert {%{"id" => ^id}, ""} = confirm(peer, :unsubscribe)
      Peer.close(peer)
      lost(client)
      peer = accept_connected(listener)
      assert_silent(peer)
    end

    test "of a process that is behind holds up neither receipts nor others, as long as little is held" do
      {client, peer, _listener} = connected()
      stuck = spawn_link(fn -> Process.sleep(:infinity) end)
      {_subscription, %{"id" => slow}} = subscribed(client, peer, to: stuck, ack: :auto)
      {_subscription, %{"id" => fast}} = subscribed(client, peer, ack: :auto)
      # In one list, so that the stuck process has more in its mailbox than it may.
      for n <- 1..150, do: message(peer, slow, "#{n}")
      alternating = for n <- 1..20, id <- [slow, fast], do: bytes(id, "#{n}")
      Peer.send(peer, Enum.join(alternating))
      assert received(client, []) == Enum.map(1..20, &to_string/1)
      publishing = async(fn -> Client.publish(client, "/queue/a", "", timeout: 2_000) end)
      confirm(peer, :send)
      assert Task.await(publishing) == :ok
    end

    defp bytes(id, body) do
      headers = [{"subscription", id}, {"message-id", body}]
      frame = %Frame{command: :message, headers: headers, body: body}
      frame |> Frame.format("1.2") |> IO.iodata_to_binary()
    end

    defp received(_client, bodies) when length(bodies) == 20, do: bodies

    defp received(client, bodies) do
      assert_receive {:barytherium, :messages, {frames, _subscription}}, 2_000
      received(client, bodies ++ Enum.map(frames, & &1.body))
    end

    test "without acknowledgements loses nothing when it ends" do
      {client, peer, _listener} = connected()
      {subscription, %{"id" => id}} = subscribed(client, peer, ack: :auto)
      unsubscribing = async(fn -> Client.unsubscribe(client, subscription) end)
      {headers, ""} = expect(peer, :unsubscribe)
      # The broker has sent this before it read UNSUBSCRIBE.
      message(peer, id, "last")
      reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])
      assert Task.await(unsubscribing) == :ok
      assert_received {:barytherium, :messages, {[%Frame{body: "last"}], _subscription}}
    end

    test "of a slow process stops the reading" do
      {client, peer, _listener} = connected()
      test = self()
      slow = spawn_link(fn -> receive do: (:go -> forward(test)) end)
      {_subscription, %{"id" => id}} = subscribed(client, peer, to: slow, ack: :auto)
      flood = spawn_link(fn -> for n <- 1..200_000, do: message(peer, id, "#{n}") end)
      network = Client.status(client).network
      eventually(fn -> Barytherium.Network.stats(network).pauses > 0 end)
      {:message_queue_len, length} = Process.info(slow, :message_queue_len)
      assert length < 200
      Process.unlink(flood)
      Process.exit(flood, :kill)
      # The client answers all the same.
      assert Client.status(client).state == :connected
      send(slow, :go)
      assert_receive {:forwarded, [%Frame{body: "1"} | _]}
    end

    defp forward(test) do
      receive do
        {:barytherium, :messages, {frames, _subscription}} ->
          send(test, {:forwarded, frames})
      end

      forward(test)
    end
  end

  describe "ack and nack" do
    defp messages(peer, id, bodies) do
      for body <- bodies do
        message(peer, id, body)
        assert_receive {:barytherium, :messages, {[frame], _subscription}}
        frame
      end
    end

    test "of single messages" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [first, second, third] = messages(peer, id, ["1", "2", "3"])
      assert Client.ack(client, [first, third]) == :ok
      assert Client.nack(client, second, [{"requeue", "false"}]) == :ok
      assert {%{"id" => "a-1"}, ""} = expect(peer, :ack)
      assert {%{"id" => "a-3"}, ""} = expect(peer, :ack)
      assert {%{"id" => "a-2", "requeue" => "false"}, ""} = expect(peer, :nack)
      assert Client.ack(client, []) == :ok
    end

    test "wait for the broker's receipts on demand" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [first, second, third] = messages(peer, id, ["1", "2", "3"])
      acking = async(fn -> Client.ack(client, [first, second], receipt: true) end)
      assert {%{"id" => "a-1"}, ""} = confirm(peer, :ack)
      assert {%{"id" => "a-2", "receipt" => receipt}, ""} = expect(peer, :ack)
      assert Task.yield(acking, 50) == nil
      reply(peer, :receipt, [{"receipt-id", receipt}])
      assert Task.await(acking) == :ok

      opts = [receipt: true, timeout: 50]
      assert {:error, %{reason: :timeout}} = Client.nack(client, third, [], opts)
      {%{"receipt" => receipt}, ""} = expect(peer, :nack)
      refused = async(fn -> Client.nack(client, third, [], receipt: true) end)
      {%{"receipt" => second_receipt}, ""} = expect(peer, :nack)
      refute receipt == second_receipt
      reply(peer, :error, [{"message", "no"}, {"receipt-id", second_receipt}])
      assert {:error, %{reason: :refused}} = Task.await(refused)
    end

    test "that are not confirmed when the connection ends may have been read" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [message] = messages(peer, id, ["1"])
      acking = async(fn -> Client.ack(client, message, receipt: true) end)
      expect(peer, :ack)
      Peer.close(peer)
      assert {:error, %{reason: :unconfirmed}} = Task.await(acking)
      lost(client)
      assert {:error, %{reason: :stale}} = Client.ack(client, message, receipt: true)
    end

    test "in a transaction have no receipts of their own" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [message] = messages(peer, id, ["1"])
      ack = fn tx -> Client.ack(tx, message, receipt: true) end
      assert_raise ArgumentError, ~r/that of COMMIT/, fn -> Client.transaction(client, ack) end
      assert_raise ArgumentError, ~r/:recipt/, fn -> Client.ack(client, message, recipt: true) end
    end

    test "of a list with ack: :client write one frame" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer, ack: :client)
      assert Client.ack(client, messages(peer, id, ["1", "2", "3"])) == :ok
      assert {%{"id" => "a-3"}, ""} = expect(peer, :ack)
      assert_silent(peer)
    end

    test "by the negotiated version" do
      {client, peer, _listener} = connected([], [{"version", "1.0"}])
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [message] = messages(peer, id, ["1"])
      assert Client.ack(client, message) == :ok
      {headers, ""} = expect(peer, :ack)
      assert headers == Map.take(Frame.headers_to_map(message.headers), ["message-id"])
      assert Client.nack(client, message) == {:error, %Barytherium.Error{reason: :unsupported}}
    end

    test "of an earlier connection, of another client and of an ended subscription are stale" do
      {client, peer, listener} = connected()
      {subscription, %{"id" => id}} = subscribed(client, peer)
      [message] = messages(peer, id, ["1"])
      Peer.close(peer)
      lost(client)
      assert Client.ack(client, message) == {:error, %Barytherium.Error{reason: :stale}}
      peer = accept_connected(listener)
      {%{"id" => id}, ""} = confirm(peer, :subscribe)
      [newer] = messages(peer, id, ["2"])
      assert Client.ack(client, [newer, message]) == {:error, %Barytherium.Error{reason: :stale}}
      assert Client.nack(client, message) == {:error, %Barytherium.Error{reason: :stale}}
      assert_silent(peer)
      unsubscribing = async(fn -> Client.unsubscribe(client, subscription) end)
      confirm(peer, :unsubscribe)
      Task.await(unsubscribing)
      assert Client.ack(client, newer) == {:error, %Barytherium.Error{reason: :stale}}
    end

    test "of a subscription without acknowledgements raises" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer, ack: :auto)
      [message] = messages(peer, id, ["1"])
      assert_raise ArgumentError, ~r/ack: :auto/, fn -> Client.ack(client, message) end
    end
  end

  describe "a connection that cannot be made" do
    defp failure(client) do
      assert_receive {:barytherium, :client, {{:connection_failure, %{reason: reason}}, ^client}}

      reason
    end

    test "is followed by an attempt at the next broker at once" do
      closed = Peer.listen(:tcp)
      port = Peer.port(closed)
      Peer.close(closed)
      {listener, url} = broker()
      urls = ["stomp://127.0.0.1:#{port}", {url, connect_timeout: 1_000}]
      # With these waits, a second round would take too long for the test.
      opts = [urls: urls, backoff: {60_000, 60_000}, listener: self()]
      client = start_supervised!({Client, opts})
      accept_connected(listener)
      assert failure(client) == :econnrefused
      eventually(fn -> Client.status(client).state == :connected end)
      assert Client.status(client).endpoint == url
    end

    test "because of a refused login is tried again soon at first" do
      {listener, url} = broker("me:secret@")
      client = start_supervised!({Client, url: url, backoff: {200, 60_000}, listener: self()})
      {peer, _connect} = accept(listener)
      reply(peer, :error, [{"message", "Bad CONNECT"}])
      assert failure(client) == :refused
      status = Client.status(client)
      assert %{state: :disconnected, error: %{frame: %Frame{}}, connections: 0} = status
      {peer, _connect} = accept(listener)
      reply(peer, :error, [{"message", "already connected"}])
      assert failure(client) == :refused
      assert Client.status(client).failures == 2
    end

    test "as often as max_attempts says ends the client" do
      {listener, url} = broker()
      opts = [url: url, backoff: {1, 1}, max_attempts: 3]
      Process.flag(:trap_exit, true)
      {:ok, client} = Client.start_link(opts)

      for _n <- 1..3 do
        {peer, _connect} = accept(listener)
        Peer.close(peer)
      end

      assert_receive {:EXIT, ^client, {:shutdown, {:max_attempts, :closed}}}
    end

    test "because the broker takes no subscription is followed by the next broker at once" do
      {bad, bad_url} = broker()
      {good, good_url} = broker()
      opts = [urls: [bad_url, good_url], backoff: {60_000, 60_000}, listener: self()]
      client = start_supervised!({Client, opts})
      {:ok, _subscription} = Client.subscribe(client, "/queue/a")
      peer = accept_connected(bad)
      expect(peer, :subscribe)
      Peer.close(peer)
      peer = accept_connected(good)
      confirm(peer, :subscribe)
    end

    test "because the broker says nothing is a time-out" do
      {listener, url} = broker()
      opts = [url: url, first_frame_timeout: 50, listener: self()]
      client = start_supervised!({Client, opts ++ @backoff})
      {_peer, _connect} = accept(listener)
      assert failure(client) == :timeout
      accept(listener)
    end

    test "because the function for the passcode fails or hangs" do
      {_listener, url} = broker()

      for {passcode, reason} <- [
            {fn -> raise "hunter2" end, :credentials},
            {fn -> "hunter2\n" end, :credentials},
            {fn -> Process.sleep(:infinity) end, :credentials}
          ] do
        log =
          capture_log(fn ->
            opts = [url: url, passcode: passcode, credentials_timeout: 200, listener: self()]
            {:ok, client} = Client.start_link(opts)
            assert failure(client) == reason
            assert Client.close(client) == :ok
          end)

        refute log =~ "hunter2"
      end
    end

    test "is tried again after a wait that grows" do
      alias Barytherium.Client.Backoff
      backoff = Backoff.new({100, 1_000})

      {waits, backoff} = Enum.map_reduce(1..100, backoff, fn _n, b -> Backoff.next(b) end)

      for {wait, most} <- Enum.zip(waits, [100, 200, 400, 800]),
          do: assert(wait in div(most, 2)..most)

      assert Enum.all?(Enum.drop(waits, 4), &(&1 in 500..1_000))
      assert waits |> Enum.uniq() |> length() > 50
      {wait, _backoff} = backoff |> Backoff.reset() |> Backoff.next()
      assert wait in 50..100
    end

    test "leaves a client that closes, and starts again, as often as it is asked" do
      {_listener, url} = broker()
      {:ok, client} = Client.start_link(url: url)
      assert Client.close(client) == :ok
      refute Process.alive?(client)
    end
  end

  test "a function for the passcode may take longer than the broker waits for CONNECT" do
    {listener, url} = broker()
    passcode = fn -> Process.sleep(300) && "slow" end
    opts = [url: url, passcode: passcode, first_frame_timeout: 100]
    client = start_supervised!({Client, opts})
    {peer, connect} = accept(listener)
    assert {"passcode", "slow"} in connect.headers
    reply(peer, :connected, [{"version", "1.2"}])
    assert Client.publish(client, "/queue/a", "", wait: true, receipt: false) == :ok
  end

  test "the time for the credentials is over when they are there" do
    {listener, url} = broker()
    opts = [url: url, credentials_timeout: 100, listener: self()]
    client = start_supervised!({Client, opts})
    {peer, _connect} = accept(listener)
    Process.sleep(200)
    reply(peer, :connected, [{"version", "1.2"}])
    eventually(fn -> Client.status(client).state == :connected end)
  end

  describe "when its end is decided" do
    test "nothing more is written on a connection, and callers are told" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [message] = messages(peer, id, ["1"])
      reply(peer, :error, [{"message", "enough"}])
      assert_receive {:barytherium, :client, {{:error, %Frame{}}, ^client}}

      assert Client.publish(client, "/a", "") ==
               {:error, %Barytherium.Error{reason: :disconnected}}

      assert Client.publish(client, "/a", "", receipt: false) ==
               {:error, %Barytherium.Error{reason: :disconnected}}

      assert Client.ack(client, message) == {:error, %Barytherium.Error{reason: :stale}}

      assert {:error, %Barytherium.Error{reason: :disconnected}} =
               Client.transaction(client, fn _ -> :ok end)

      expect(peer, :disconnect)
      assert_silent(peer)
    end

    test "of a transaction, what has kept it writes nothing" do
      {client, peer, _listener} = connected()
      transacting = async(fn -> Client.transaction(client, & &1) end)
      expect(peer, :begin)
      confirm(peer, :commit)
      {:ok, transaction} = Task.await(transacting)

      assert Client.publish(transaction, "/a", "") ==
               {:error, %Barytherium.Error{reason: :transaction_over}}

      assert_silent(peer)
    end

    test "of the caller of a transaction, it is aborted" do
      {client, peer, _listener} = connected()

      {:ok, pid} =
        Task.start(fn -> Client.transaction(client, fn _ -> Process.sleep(:infinity) end) end)

      {%{"transaction" => id}, ""} = expect(peer, :begin)
      Process.exit(pid, :kill)
      assert {%{"transaction" => ^id}, ""} = expect(peer, :abort)
    end

    test "of a caller that waits for a connection, its message is not sent" do
      {listener, url} = broker()
      client = start_supervised!({Client, url: url})
      {:ok, pid} = Task.start(fn -> Client.publish(client, "/a", "gone", wait: true) end)
      eventually(fn -> map_size(elem(:sys.get_state(client), 1).waiting) == 1 end)
      Process.exit(pid, :kill)
      peer = accept_connected(listener)
      publishing = async(fn -> Client.publish(client, "/a", "there", wait: true) end)
      assert {_headers, "there"} = confirm(peer, :send)
      assert Task.await(publishing) == :ok
    end
  end

  test "close/2 of a client that has ended is an exit, and leaves no message" do
    {client, _peer, _listener} = connected()
    stop_supervised!(Client)
    assert {:noproc, _call} = catch_exit(Client.close(client))
    refute_received {:DOWN, _monitor, :process, _pid, _reason}
  end

  test "a message that belongs to no subscription goes to the listener" do
    {client, peer, _listener} = connected()
    message(peer, "/temp-queue/replies", "answer")
    assert_receive {:barytherium, :client, {{:message, frame}, ^client}}
    assert frame.body == "answer"
  end

  test "one process with several subscriptions gets their messages in the order on the wire" do
    {client, peer, _listener} = connected()
    ids = for _n <- 1..3, do: (fn {_, %{"id" => id}} -> id end).(subscribed(client, peer))
    Peer.send(peer, for(n <- 0..19, do: bytes(Enum.at(ids, rem(n, 3)), "#{n}")))
    assert received(client, []) == Enum.map(0..19, &to_string/1)
  end

  test "the waits start again with the shortest when a connection has lasted" do
    {client, peer, listener} = connected(backoff: {50, 50})
    assert Client.status(client).failures == 0
    Peer.close(peer)
    lost(client)
    assert Client.status(client).failures == 1
    peer = accept_connected(listener)
    eventually(fn -> Client.status(client).connections == 2 end)
    Process.sleep(60)
    Peer.close(peer)
    lost(client)
    assert Client.status(client).failures == 1
  end

  test "status and stats tell of the connection" do
    {client, peer, _listener} = connected([], [{"version", "1.1"}, {"server", "Test/1"}])
    status = Client.status(client)
    assert %{state: :connected, version: "1.1", server: "Test/1", error: nil} = status
    assert status.endpoint =~ ~r{^stomp://127.0.0.1:\d+$}
    assert %{frames: 1, frames_written: 1} = Client.stats(client)
    Peer.close(peer)
    lost(client)
    assert Client.stats(client) == nil
  end

  test "one client can have a name, and be restarted by its supervisor" do
    {listener, url} = broker()
    start_supervised!({Client, url: url, name: __MODULE__})
    accept_connected(listener)
    eventually(fn -> Client.status(__MODULE__).state == :connected end)
    Process.exit(Process.whereis(__MODULE__), :kill)
    accept_connected(listener)
  end

  describe "close" do
    test "waits for receipts, ends subscriptions without acknowledgements, and disconnects" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => auto}} = subscribed(client, peer, ack: :auto)
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      [message] = messages(peer, id, ["1"])
      publishing = async(fn -> Client.publish(client, "/queue/a", "") end)
      {headers, ""} = expect(peer, :send)
      closing = async(fn -> Client.close(client) end)
      assert {%{"id" => ^auto} = unsubscribe, ""} = expect(peer, :unsubscribe)
      # This one was sent before the broker read UNSUBSCRIBE.
      message(peer, auto, "last")
      assert_receive {:barytherium, :messages, {[%Frame{body: "last"}], _subscription}}

      assert Client.publish(client, "/queue/a", "") ==
               {:error, %Barytherium.Error{reason: :disconnected}}

      reply(peer, :receipt, [{"receipt-id", unsubscribe["receipt"]}])
      assert Client.ack(client, message) == :ok
      expect(peer, :ack)
      assert_silent(peer)
      reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])
      assert Task.await(publishing) == :ok
      disconnect(peer)
      assert Task.await(closing) == :ok
      refute Process.alive?(client)
    end

    test "gives up after its time-out" do
      {client, _peer, _listener} = connected()
      monitor = Process.monitor(client)
      assert Client.close(client, 100) == {:error, %Barytherium.Error{reason: :timeout}}
      assert_receive {:DOWN, ^monitor, :process, ^client, :normal}
    end

    test "does not wait for a subscriber that is the caller" do
      {client, peer, _listener} = connected()
      {_subscription, %{"id" => id}} = subscribed(client, peer, ack: :auto)
      test = self()

      spawn_link(fn ->
        for n <- 1..300, do: message(peer, id, "#{n}")
        send(test, :sent)
        confirm(peer, :unsubscribe)
        disconnect(peer)
        Process.sleep(:infinity)
      end)

      assert_receive :sent
      assert Client.close(client, 10_000) == :ok
    end
  end

  test "a client that ends takes everything with it, and writes what was written before" do
    {client, peer, _listener} = connected()
    %{network: network} = Client.status(client)
    {:links, links} = Process.info(client, :links)
    links = links -- [ExUnit.fetch_test_supervisor() |> elem(1)]
    assert [network] == links
    :ok = Client.publish(client, "/queue/a", "x", receipt: false)
    monitors = Enum.map(links, &Process.monitor/1)
    answering = async(fn -> Peer.read_all(peer) end)
    stop_supervised!(Client)
    for monitor <- monitors, do: assert_receive({:DOWN, ^monitor, :process, _pid, _reason})
    {data, _end} = Task.await(answering)
    assert data =~ ~r/SEND.*DISCONNECT/s
  end

  # Elixir 1.14 does not log the crash of a state machine, so this looks at the report itself.
  defmodule Reports do
    def log(event, %{config: test}), do: send(test, {:report, event})
  end

  test "secrets are in no state, status, child spec or crash report" do
    secret = "hunter2"
    {listener, url} = broker("me:#{secret}@")
    {ssl_listener, _url} = broker()
    ssl_url = "stomp+ssl://me:#{secret}@127.0.0.1:#{Peer.port(ssl_listener)}"
    opts = [urls: [url, ssl_url], passcode: secret, ssl: [password: secret]]
    refute inspect(Client.child_spec(opts)) =~ secret

    Process.flag(:trap_exit, true)
    {:ok, client} = Client.start_link(opts)
    {_peer, connect} = accept(listener)
    refute inspect(connect) =~ secret
    refute inspect(:sys.get_state(client), limit: :infinity) =~ secret
    status = :io_lib.format("~p", [:sys.get_status(client)])
    refute IO.iodata_to_binary(status) =~ secret

    :ok = :logger.add_handler(__MODULE__, Reports, %{config: self()})
    on_exit(fn -> :logger.remove_handler(__MODULE__) end)
    :sys.replace_state(client, fn {state, data} -> {state, %{data | requests: :broken}} end)
    send(client, {:request_timeout, 1})
    assert_receive {:EXIT, ^client, _reason}

    assert_receive {:report, %{meta: %{pid: ^client, mfa: {:gen_statem, _, _}}} = report}

    refute inspect(report, limit: :infinity, printable_limit: :infinity) =~ secret
  end

  test "mistakes in the options raise, and the message shows no password" do
    for {opts, message} <- [
          {[], ~r/option :url is missing/},
          {[url: "http://me:hunter2@h"], ~r/option :url: there is no scheme/},
          {[url: "stomp://h", urls: ["stomp://h"]], ~r/both given/},
          {[url: "stomp://h", passcode: :hunter2],
           ~r/invalid value for option :passcode, and not/},
          {[url: "stomp://h", secure: true], ~r/the scheme of the URL decides/},
          {[url: "stomp://h", ssl: [verify: :verify_none]], ~r/no URL begins with stomp\+ssl/},
          {[url: "stomp://h", cacertfile: "a"], ~r/secure: true is missing/},
          {[url: "stomp://h", client_id: "a", headers: [{"client-id", "b"}]],
           ~r/option :client_id/},
          {[url: "stomp://h", backof: {1, 2}], ~r/unknown option :backof/},
          {[url: "stomp://h", backoff: {2, 1}], ~r/invalid value for option :backoff: \{2, 1\}/},
          {[url: "stomp://h:99999"], ~r/invalid value for option :url|not a port/},
          {[url: "stomp://h", connect_timeout: -1], ~r/:connect_timeout/},
          {"stomp://hunter2@h", ~r/not a list/}
        ] do
      error = assert_raise ArgumentError, message, fn -> Client.start_link(opts) end
      refute Exception.message(error) =~ "hunter2"
    end
  end
end
