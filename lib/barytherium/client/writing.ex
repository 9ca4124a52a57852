defmodule Barytherium.Client.Writing do
  @moduledoc false
  # Frames of a client that it waits for the receipts of. Their results go through
  # `Barytherium.Client.Exchange.answer/3`. The functions run in the client, and take and return its data.

  alias Barytherium.Client.{Requests, Routing, Session, State}
  alias Barytherium.Connection.Deadline
  alias Barytherium.{Frame, Network}
  alias Barytherium.Network.Sender

  # Milliseconds that the broker may take to close a connection that is of no use any more.
  @hang_up_timeout 1_000

  # Milliseconds before the end of a request's time, a tenth of it at most, in which the sender answers that there
  # was no room. Otherwise nobody would know whether it was written.
  @answer_time 100

  @doc "Writes frames when there is room for them."
  @spec submit([Frame.t()], Requests.from(), Deadline.t(), State.t()) :: State.t()
  def submit(frames, from, deadline, data) do
    {left, submit} = submitting(deadline, data)
    write(frames, from, left, data, submit)
  end

  defp submitting(deadline, data) do
    left = Deadline.left(deadline)
    written_by = Deadline.in_ms(left - min(div(left, 10), @answer_time))
    sender = data.connection.session.sender
    {left, &Sender.submit(sender, &1, {:request, &2}, written_by)}
  end

  @doc "The same, without a receipt: the broker's answer is something else."
  @spec submit_unconfirmed([Frame.t()], Requests.from(), Deadline.t(), State.t()) :: State.t()
  def submit_unconfirmed(frames, from, deadline, data) do
    {left, submit} = submitting(deadline, data)
    write(frames, from, left, data, fn _with_receipts, number -> submit.(frames, number) end)
  end

  # The sender only logs what it cannot write.
  @doc "Writes frames that do not wait for room behind messages."
  @spec write_now([Frame.t()], Requests.from(), timeout(), State.t()) :: State.t()
  def write_now(frames, from, timeout, data) do
    write(frames, from, timeout, data, fn frames, number ->
      if Enum.all?(frames, &writable?(&1, data.connection.session.dialect)),
        do: Sender.write(data.connection.sender, frames),
        else: send(self(), {:not_written, {:request, number}, :unescapable})
    end)
  end

  @doc """
  Writes the frames of several requests together, for as long as that takes, and their receipts. The client gets
  `{:written, {tag, sender}}`, or `{:not_written, {tag, sender}, reason}`. `cost` is the sum of the frames' costs.
  """
  @spec submit_all([{Requests.from(), [Frame.t(), ...]}], pos_integer(), atom(), State.t()) ::
          State.t()
  def submit_all(requests, cost, tag, data) do
    if Requests.none?(data.requests), do: Routing.urgent(true, data)

    {frames, requests} =
      Enum.flat_map_reduce(requests, data.requests, fn {from, frames}, requests ->
        Requests.add(requests, {from, nil}, frames)
      end)

    sender = data.connection.sender
    Sender.submit_prepared(sender, frames, cost, {tag, sender})
    %{data | requests: requests}
  end

  defp write(frames, from, timeout, data, write) do
    number = data.requests.next
    timer = Process.send_after(self(), {:request_timeout, number}, timeout)
    if Requests.none?(data.requests), do: Routing.urgent(true, data)
    {frames, requests} = Requests.add(data.requests, {from, timer}, frames)
    write.(frames, number)
    %{data | requests: requests}
  end

  defp writable?(frame, dialect) do
    Frame.format(frame, dialect)
    true
  rescue
    ArgumentError -> false
  end

  @doc "Writes the SUBSCRIBE of a subscription, after its route is there."
  @spec subscribe(Session.subscription(), Requests.from(), timeout(), State.t()) :: State.t()
  def subscribe(subscription, from, timeout, data) do
    {frame, session} = Session.subscribe(data.connection.session, subscription)
    data = put_in(data.connection.session, session)
    Routing.put(subscription, data)
    now = System.monotonic_time(:millisecond)

    data =
      update_in(data.subscriptions[subscription.number], fn entry ->
        entry |> Map.merge(%{request: data.requests.next, asked: now}) |> Map.put_new(:first, now)
      end)

    if subscription.receipt,
      do: write_now([frame], from, timeout, data),
      else: write_without_receipt([frame], from, timeout, data)
  end

  defp write_without_receipt(frames, from, timeout, data) do
    write(frames, from, timeout, data, fn _with_receipts, number ->
      Sender.write(data.connection.sender, frames)
      send(self(), {:written, number})
    end)
  end

  @doc "There is no such subscription on this connection."
  @spec withdraw(Session.subscription(), State.t()) :: State.t()
  def withdraw(subscription, %{connection: %{session: %Session{} = session}} = data) do
    Routing.delete(subscription, data)
    {_frame, session} = Session.unsubscribe(session, subscription)
    put_in(data.connection.session, session)
  end

  def withdraw(_subscription, data), do: data

  @doc "Ends the connection. Its network process reports the end like any other."
  @spec hang_up(atom() | Frame.t(), State.t()) :: State.t()
  def hang_up(verdict, %{connection: %{network: network}} = data) do
    close_network(network, @hang_up_timeout)
    put_in(data.connection.verdict, verdict)
  end

  @spec close_network(pid(), timeout()) :: pid()
  def close_network(network, timeout) do
    spawn(fn ->
      try do
        Network.close(network, timeout)
      catch
        # It has ended.
        :exit, _reason -> :ok
      end
    end)
  end
end
