defmodule Barytherium.Client.Closing do
  @moduledoc false
  # How a client ends: first the broker answers what was asked, then a consumer's process handles what has
  # arrived, then there is a DISCONNECT. The functions run in the client, and take its data.

  alias Barytherium.Client.{
    Connecting,
    Events,
    Exchange,
    Handlers,
    Publishing,
    Replies,
    Requests,
    Session,
    State,
    Writing
  }

  alias Barytherium.Connection.Deadline

  # Milliseconds that the network process may take to write what is left when the client is stopped.
  # It gives up itself after 10 s.
  @stop_timeout 11_000

  # Milliseconds that the last callback may take when a consumer stops, a fifth of the time at most. Then its
  # process is killed.
  @longest_callback 1_000

  @doc "Begins to close, for the caller of `Barytherium.Client.close/2`."
  @spec close(:gen_statem.from(), non_neg_integer(), State.t()) ::
          :gen_statem.event_handler_result(atom())
  def close(from, timeout, data) do
    Process.send_after(self(), :close_timeout, timeout)
    data = Publishing.refuse_blocked(%{data | closing: {from, Deadline.in_ms(timeout), timeout}})
    close_if_done(:closing, Exchange.quiesce(timeout, data))
  end

  @doc """
  Begins to stop a consumer's client: its process handles what has arrived, for `handling` milliseconds at
  most, and then there are `farewell` milliseconds to disconnect.
  """
  @spec stop(:gen_statem.from(), non_neg_integer(), non_neg_integer(), atom(), State.t()) ::
          :gen_statem.event_handler_result(atom())
  def stop(from, handling, farewell, state, data) do
    Process.send_after(self(), :close_timeout, handling + farewell)
    Process.send_after(self(), :handling_timeout, handling)
    last = handling - min(div(handling, 5), @longest_callback)
    Handlers.stop_at(data.handlers, Deadline.in_ms(last))
    data = Publishing.refuse_blocked(Connecting.refuse_waiting(data))
    data = %{data | closing: {from, Deadline.in_ms(handling + farewell), farewell}}

    case state do
      :connected -> close_if_done(:closing, Exchange.quiesce(handling, data))
      :connecting -> close_if_done(:closing, abandon(data))
      _other -> close_if_done(:closing, data)
    end
  end

  @doc "The time for handling is over."
  @spec handling_timeout(State.t()) :: :gen_statem.event_handler_result(atom())
  def handling_timeout(data) do
    data = %{data | handlers: Handlers.kill(data.handlers)}
    close_if_done(:closing, Exchange.fail_all(:timeout, data))
  end

  # When nothing more comes for subscriptions without acknowledgements, a consumer's process handles what has
  # arrived until then. When that is done, and the broker has answered everything, the DISCONNECT is written.
  @doc "Goes on with closing, if the client closes."
  @spec close_if_done(atom(), State.t()) :: :gen_statem.event_handler_result(atom())
  def close_if_done(state, %{closing: {_from, deadline, farewell}} = data)
      when state in [:connected, :closing] do
    cond do
      Exchange.quiescing?(data) ->
        {:next_state, :closing, data}

      Handlers.running?(data.handlers) ->
        {:next_state, :closing,
         %{data | handlers: Handlers.finish(data.handlers, State.network(data))}}

      # Whoever is to reply may take as long as it likes.
      Replies.numbers(data) != [] ->
        close_if_done(state, Exchange.fail_replies(data))

      not Requests.none?(data.requests) or Publishing.busy?(data) ->
        {:next_state, :closing, data}

      not match?(%{network: network, session: %Session{}} when network != nil, data.connection) ->
        closed(:closed, data)

      true ->
        Writing.close_network(data.connection.network, min(Deadline.left(deadline), farewell))
        {:next_state, :closing, data}
    end
  end

  def close_if_done(_state, data), do: {:keep_state, data}

  # The connection has ended while the consumer's process still handles what has arrived.
  @doc "The connection has ended while the client closes."
  @spec closed(atom(), State.t()) :: :gen_statem.event_handler_result(atom())
  def closed(reason, %{handlers: handlers} = data)
      when handlers != nil and handlers.pid != nil do
    data = Connecting.release(%{data | reason: reason})
    # A fence may have been lost with the connection.
    handlers = Handlers.finish(%{handlers | finishing: false}, nil)
    close_if_done(:closing, Connecting.reset(%{data | handlers: handlers}))
  end

  # The network closes at the deadline too, and what was not written by then is lost.
  def closed(reason, %{closing: {from, deadline, _farewell}} = data) do
    reply =
      cond do
        Deadline.left(deadline) == 0 -> {:error, :timeout}
        Requests.none?(data.requests) -> :ok
        true -> {:error, reason}
      end

    data = Connecting.release(%{data | reason: reason})

    with %{since: since} when since != nil <- data.connection,
         do: Events.closed(reason, System.monotonic_time() - since, data)

    {:stop_and_reply, :normal, {:reply, from, reply}, Connecting.reset(data)}
  end

  @doc "Ends the connection at once. Nobody waits for what may still have to be written."
  @spec abandon(State.t()) :: State.t()
  def abandon(%{connection: %{network: network}} = data) when network != nil do
    Process.unlink(network)
    Process.exit(network, :kill)
    put_in(data.connection.network, nil)
  end

  def abandon(data), do: data

  @doc "Its acknowledgements and a DISCONNECT are written before the application, or the VM, stops."
  @spec stop_and_wait(nil | pid()) :: :ok
  def stop_and_wait(nil), do: :ok

  def stop_and_wait(network) do
    monitor = Process.monitor(network)
    Process.exit(network, :shutdown)

    receive do
      {:DOWN, ^monitor, :process, ^network, _reason} -> :ok
    after
      @stop_timeout -> :ok
    end
  end
end
