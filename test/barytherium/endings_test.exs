defmodule Barytherium.EndingsTest do
  # Subscriptions and transactions that end at the wrong moment. The broker's answers are those of RabbitMQ.
  use Barytherium.ClientCase, async: true

  @rabbitmq [{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}]

  setup do
    {listener, url} = broker()
    client = start_supervised!({Client, url: url})
    peer = accept_connected(listener, @rabbitmq)
    eventually(fn -> Client.status(client).state == :connected end)
    %{client: client, peer: peer, listener: listener}
  end

  defp subscribe(client, peer) do
    {subscription, %{"id" => id}} = subscribed(client, peer)
    {subscription, id}
  end

  defp message_of(peer, id, body) do
    message(peer, id, body)
    assert_receive {:barytherium, :messages, {[frame], _subscription}}
    frame
  end

  # The next frame's command. It gets its receipt.
  defp confirmed(peer) do
    %Frame{command: command} = frame = next_frame(peer)

    with receipt when receipt != nil <- Frame.header(frame, "receipt"),
         do: reply(peer, :receipt, [{"receipt-id", receipt}])

    command
  end

  # The frames with which a subscription ends.
  defp confirm_end(peer, id, given_back) do
    {%{"id" => ^id}, ""} = confirm(peer, :unsubscribe)

    {%{"id" => ^id, "destination" => "/topic/barytherium.nothing." <> ^id}, ""} =
      confirm(peer, :subscribe)

    {%{"transaction" => transaction}, ""} = confirm(peer, :begin)

    for body <- given_back do
      ack = "a-#{body}"
      assert {%{"id" => ^ack, "requeue" => "true"}, ""} = expect(peer, :nack)
    end

    {%{"transaction" => ^transaction}, ""} = confirm(peer, :abort)
    {%{"id" => ^id}, ""} = confirm(peer, :unsubscribe)
  end

  test "what was not acknowledged is given back", %{client: client, peer: peer} do
    {subscription, id} = subscribe(client, peer)
    [one, _two] = for body <- ["1", "2"], do: message_of(peer, id, body)
    assert Client.ack(client, one) == :ok
    expect(peer, :ack)
    ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
    {%{"id" => ^id} = unsubscribe, ""} = expect(peer, :unsubscribe)
    # On its way when the broker read this.
    message(peer, id, "late")
    reply(peer, :receipt, [{"receipt-id", unsubscribe["receipt"]}])
    confirm(peer, :subscribe)
    confirm(peer, :begin)
    for body <- ["2", "late"], do: assert({%{"id" => "a-" <> ^body}, ""} = expect(peer, :nack))
    confirm(peer, :abort)
    confirm(peer, :unsubscribe)
    assert Task.await(ending) == :ok
    refute_received {:barytherium, :messages, _late}
  end

  test "a caller that waits too long gets a time-out, and the ending goes on", context do
    %{client: client, peer: peer} = context
    {subscription, id} = subscribe(client, peer)
    message_of(peer, id, "1")
    assert {:error, %{reason: :timeout}} = Client.unsubscribe(client, subscription, 20)
    assert {:error, %{reason: :not_subscribed}} = Client.unsubscribe(client, subscription)
    confirm_end(peer, id, ["1"])
    eventually(fn -> Client.status(client).unconfirmed == 0 end)
  end

  test "a subscriber may end before the broker's answer", %{client: client, peer: peer} do
    subscriber = spawn(fn -> Process.sleep(:infinity) end)
    opts = [to: subscriber, timeout: 100]
    subscribing = Task.async(fn -> Client.subscribe(client, "/queue/a", opts) end)
    {%{"id" => id}, ""} = expect(peer, :subscribe)
    Process.exit(subscriber, :kill)
    confirm(peer, :unsubscribe)
    confirm(peer, :subscribe)
    {begin, ""} = expect(peer, :begin)
    assert {:error, %{reason: :timeout}} = Task.await(subscribing)
    reply(peer, :receipt, [{"receipt-id", begin["receipt"]}])
    confirm(peer, :abort)
    {%{"id" => ^id}, ""} = confirm(peer, :unsubscribe)
    assert %{state: :connected, connections: 1, subscriptions: 0} = Client.status(client)
  end

  test "a user who may not subscribe to topics loses the connection once", context do
    %{client: client, peer: peer, listener: listener} = context
    {subscription, id} = subscribe(client, peer)
    message_of(peer, id, "1")
    ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
    for command <- [:unsubscribe, :subscribe], do: expect(peer, command)
    reply(peer, :error, [{"message", "access_refused"}])
    assert Task.await(ending) == :ok
    peer = accept_connected(listener, @rabbitmq)
    eventually(fn -> Client.status(client).state == :connected end)
    {subscription, id} = subscribe(client, peer)
    ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
    confirm(peer, :unsubscribe)

    assert {%{"id" => ^id, "destination" => "/queue/a", "prefetch-count" => "1"}, ""} =
             confirm(peer, :subscribe)

    for command <- [:begin, :abort, :unsubscribe], do: confirm(peer, command)
    assert Task.await(ending) == :ok
  end

  test "a subscribe that times out gives back what has come", %{client: client, peer: peer} do
    assert {:error, %{reason: :timeout}} = Client.subscribe(client, "/queue/a", timeout: 20)
    {%{"id" => id}, ""} = expect(peer, :subscribe)
    confirm_end(peer, id, [])
  end

  test "what is no subscription is not subscribed", %{client: client} do
    for wrong <- [1, nil, {self(), 1}],
        do: assert({:error, %{reason: :not_subscribed}} = Client.unsubscribe(client, wrong))
  end

  test "a subscription that was refused is not unsubscribed", %{
    listener: listener,
    client: client,
    peer: peer
  } do
    subscriber = spawn(fn -> Process.sleep(:infinity) end)
    subscribing = Task.async(fn -> Client.subscribe(client, "/queue/a", to: subscriber) end)
    confirm(peer, :subscribe)
    {:ok, _subscription} = Task.await(subscribing)
    Peer.close(peer)
    peer = accept_connected(listener, @rabbitmq)
    {headers, ""} = expect(peer, :subscribe)
    reply(peer, :error, [{"receipt-id", headers["receipt"]}, {"message", "no"}])
    eventually(fn -> Client.status(client).unconfirmed == 0 end)
    Process.exit(subscriber, :kill)
    eventually(fn -> Client.status(client).subscriptions == 0 end)
    publishing = Task.async(fn -> Client.publish(client, "/a", "x") end)
    confirm(peer, :send)
    assert Task.await(publishing) == :ok
  end

  describe "a transaction" do
    test "whose caller is killed after COMMIT is not aborted", %{client: client, peer: peer} do
      caller = spawn(fn -> Client.transaction(client, fn _transaction -> :ok end) end)
      expect(peer, :begin)
      expect(peer, :commit)
      Process.exit(caller, :kill)
      publishing = Task.async(fn -> Client.publish(client, "/a", "x") end)
      assert {_headers, "x"} = confirm(peer, :send)
      assert Task.await(publishing) == :ok
    end

    test "whose COMMIT cannot be written is aborted", %{client: client, peer: peer} do
      {_subscription, id} = subscribe(client, peer)
      frame = message_of(peer, id, "1")
      # Nobody reads, so there is no room.
      filling =
        for {size, unconfirmed} <- [{32, 1}, {2, 2}] do
          body = String.duplicate("x", size * 1024 * 1024)
          task = Task.async(fn -> Client.publish(client, "/fill", body, timeout: 20_000) end)
          eventually(fn -> Client.status(client).unconfirmed == unconfirmed end)
          task
        end

      assert {:error, %{reason: :not_written}} =
               Client.transaction(client, &Client.ack(&1, frame), timeout: 100)

      confirm(peer, :send)
      commands = for _n <- 1..4, do: confirmed(peer)
      assert Enum.sort(commands) == [:abort, :ack, :begin, :send]
      assert Task.await_many(filling) == [:ok, :ok]
    end

    test "is over when a subscription has ended whose messages it acknowledges", context do
      %{client: client, peer: peer} = context
      {subscription, id} = subscribe(client, peer)
      frame = message_of(peer, id, "1")
      test = self()

      transaction =
        Task.async(fn ->
          Client.transaction(client, fn transaction ->
            :ok = Client.ack(transaction, frame)
            send(test, :acknowledged)
            receive do: (:go -> :ok)
          end)
        end)

      assert_receive :acknowledged
      ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
      for command <- [:begin, :ack, :abort], do: expect(peer, command)
      confirm_end(peer, id, ["1"])
      assert Task.await(ending) == :ok
      send(transaction.pid, :go)
      assert {:error, %{reason: :transaction_over}} = Task.await(transaction)
    end

    test "that was aborted is not written in", %{client: client, peer: peer} do
      {subscription, id} = subscribe(client, peer)
      frame = message_of(peer, id, "1")

      Client.transaction(client, fn transaction ->
        :ok = Client.ack(transaction, frame)
        ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
        for command <- [:begin, :ack, :abort], do: expect(peer, command)
        confirm_end(peer, id, ["1"])
        assert Task.await(ending) == :ok

        assert {:error, %{reason: :transaction_over}} =
                 Client.publish(transaction, "/queue/b", "x")
      end)
    end

    test "of a connection that has ended is refused at once", %{client: client, peer: peer} do
      assert {:error, %{reason: :disconnected}} =
               Client.transaction(client, fn _transaction ->
                 Peer.close(peer)
                 eventually(fn -> Client.status(client).state != :connected end)
               end)
    end
  end
end
