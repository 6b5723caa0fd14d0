"""The words of the toy grammar, as text: German entries, their English translations and how likely each one is.

Only data/toy_lexicon.py reads it. Entry: `german = english .6 | english .4`, the most likely translation first, so that
the mode is well defined; a single one needs no number. Who changes a word raises `toy.VERSION`.
"""

# gender singular plural, and the oblique singular of weak nouns
NOUNS = {
    "person": """
        m Mann Männer = man/men; f Frau Frauen = woman/women; n Kind Kinder = child/children .7 | kid .3
        m Junge Jungen Jungen = boy; n Mädchen Mädchen = girl; m Lehrer Lehrer = teacher
        f Lehrerin Lehrerinnen = teacher; m Arzt Ärzte = doctor .7 | physician .3
        f Ärztin Ärztinnen = doctor .7 | physician .3; m Nachbar Nachbarn Nachbarn = neighbour .6 | neighbor .4
        f Freundin Freundinnen = friend .65 | girlfriend .35; m Freund Freunde = friend
        m Schüler Schüler = pupil .6 | student .4; m Student Studenten Studenten = student
        m Polizist Polizisten Polizisten = police officer .6 | policeman/policemen .4
        m Verkäufer Verkäufer = salesman/salesmen .5 | seller .3 | shop assistant .2; f Tante Tanten = aunt
        m Onkel Onkel = uncle; m Bruder Brüder = brother; f Schwester Schwestern = sister
        m Chef Chefs = boss .65 | manager .35; m Gast Gäste = guest .7 | visitor .3; m Koch Köche = cook .6 | chef .4
        m Fahrer Fahrer = driver; f Mutter Mütter = mother; m Vater Väter = father
        f Künstlerin Künstlerinnen = artist""",
    "animal": """
        m Hund Hunde = dog; f Katze Katzen = cat; n Pferd Pferde = horse; m Vogel Vögel = bird; f Kuh Kühe = cow
        f Maus Mäuse = mouse/mice; m Bär Bären Bären = bear; m Hase Hasen Hasen = rabbit .6 | hare .4""",
    "thing": """
        n Fahrrad Fahrräder = bike .6 | bicycle .4; m Tisch Tische = table; m Stuhl Stühle = chair
        m Schlüssel Schlüssel = key; f Tasche Taschen = bag .7 | handbag .3
        n Bild Bilder = picture .5 | painting .3 | image .2; n Geschenk Geschenke = present .6 | gift .4
        m Koffer Koffer = suitcase; f Uhr Uhren = clock .6 | watch .4; m Ball Bälle = ball; f Blume Blumen = flower
        m Regenschirm Regenschirme = umbrella; n Messer Messer = knife/knives; m Teller Teller = plate .7 | dish .3
        f Flasche Flaschen = bottle; m Schrank Schränke = cupboard .6 | wardrobe .4; n Spielzeug Spielzeuge = toy""",
    "device": """
        f Lampe Lampen = lamp .6 | light .4; m Computer Computer = computer; n Radio Radios = radio
        m Fernseher Fernseher = television .6 | TV set .4; f Kamera Kameras = camera; n Auto Autos = car
        f Waschmaschine Waschmaschinen = washing machine .7 | washer .3""",
    "text": """
        n Buch Bücher = book; m Brief Briefe = letter; f Zeitung Zeitungen = newspaper .7 | paper .3
        f Geschichte Geschichten = story .65 | tale .35; f Nachricht Nachrichten = message .65 | note .35
        n Gedicht Gedichte = poem""",
    "food": """
        m Apfel Äpfel = apple; m Kuchen Kuchen = cake; f Suppe Suppen = soup; n Ei Eier = egg
        f Kartoffel Kartoffeln = potato; m Salat Salate = salad; f Birne Birnen = pear
        n Brötchen Brötchen = roll .6 | bun .4""",
    "drink": """
        m Kaffee Kaffees = coffee; m Tee Tees = tea; n Bier Biere = beer; m Saft Säfte = juice""",
    "opening": """
        f Tür Türen = door; n Fenster Fenster = window; n Tor Tore = gate; f Kiste Kisten = box .65 | crate .35
        f Haustür Haustüren = front door; m Briefkasten Briefkästen = mailbox .6 | letter box .4""",
    "clothing": """
        m Mantel Mäntel = coat; f Jacke Jacken = jacket; n Hemd Hemden = shirt; m Hut Hüte = hat
        n Kleid Kleider = dress; m Schuh Schuhe = shoe; m Handschuh Handschuhe = glove
        m Hausschuh Hausschuhe = slipper""",
    "room": """
        f Küche Küchen = kitchen; n Zimmer Zimmer = room; m Keller Keller = basement .6 | cellar .4
        n Schlafzimmer Schlafzimmer = bedroom; n Büro Büros = office""",
    "place": """
        f Stadt Städte = city .6 | town .4; m Garten Gärten = garden .7 | yard .3; f Schule Schulen = school
        m Park Parks = park; m Wald Wälder = forest .7 | wood .3; n Museum Museen = museum
        m Bahnhof Bahnhöfe = station .6 | train station .4; f Kirche Kirchen = church
        n Krankenhaus Krankenhäuser = hospital; f Bibliothek Bibliotheken = library
        m Laden Läden = shop .6 | store .4; n Dorf Dörfer = village; n Restaurant Restaurants = restaurant
        m Markt Märkte = market; n Haus Häuser = house""",
}

# put before the nouns of HEADS
MODIFIERS = """
    Küchen = kitchen; Garten = garden; Schul = school; Kinder = children's; Sommer = summer; Winter = winter
    Holz = wooden; Reise = travel .65 | travelling .35; Hotel = hotel; Büro = office"""
HEADS = "Tisch Stuhl Tür Fenster Schrank Schlüssel Tasche Uhr Schuh Jacke Buch Lampe"

# predicate, and after a slash the stem before an ending where it differs
ADJECTIVES = {
    "any": """
        groß = big .55 | large .3 | great .15; klein = small .65 | little .35; alt = old; jung = young; neu = new
        schön = beautiful .55 | nice .25 | lovely .2; seltsam = strange .6 | odd .4
        bekannt = well-known .6 | famous .4; wichtig = important; wunderbar = wonderful .6 | marvellous .4
        schrecklich = terrible .6 | horrible .4; schmutzig = dirty; sauber = clean""",
    "alive": """
        müde = tired; glücklich = happy .7 | glad .3; traurig = sad .65 | unhappy .35; hungrig = hungry
        krank = ill .6 | sick .4; nett = nice .5 | kind .3 | friendly .2; klug = clever .5 | smart .3 | wise .2
        fleißig = hard-working .6 | diligent .4; stark = strong; ruhig = quiet .6 | calm .4""",
    "dead": """
        rot = red; schwarz = black; weiß = white; blau = blue
        grün = green; billig = cheap .65 | inexpensive .35; teuer/teur = expensive
        kaputt = broken; schwer = heavy; dunkel/dunkl = dark; rund = round; leer = empty""",
}

# prefix+infinitive third-person [ist] participle; before the colon: groups of objects, preposition, case;
# English: base/past/participle/ing where irregular; `_` binds a word to the verb, `~` a particle that can move away
VERBS = {
    "intransitive": """
        schlafen schläft geschlafen = sleep/slept; arbeiten arbeitet gearbeitet = work; lachen lacht gelacht = laugh
        weinen weint geweint = cry .7 | weep/wept .3; tanzen tanzt getanzt = dance
        singen singt gesungen = sing/sang/sung; spielen spielt gespielt = play
        lernen lernt gelernt = study .6 | learn .4; warten wartet gewartet = wait
        auf+stehen steht ist aufgestanden = get_up/got/got/getting .65 | rise/rose/risen .35
        ein+schlafen schläft ist eingeschlafen = fall_asleep/fell/fallen
        auf+wachen wacht ist aufgewacht = wake_up/woke/woken""",
    "transitive": """
        thing,device,food,drink,clothing,text: kaufen kauft gekauft = buy/bought .7 | purchase .3
        thing,device,clothing,text: verkaufen verkauft verkauft = sell/sold
        person,animal,thing,device,opening,place: sehen sieht gesehen = see/saw/seen
        person,animal,thing,device,clothing,text: suchen sucht gesucht = look_for .6 | search_for .4
        person,animal,thing,device,clothing,text: finden findet gefunden = find/found
        text: lesen liest gelesen = read/read; text: schreiben schreibt geschrieben = write/wrote/written
        food: essen isst gegessen = eat/ate/eaten; drink: trinken trinkt getrunken = drink/drank/drunk
        food,drink: kochen kocht gekocht = cook .6 | make/made .4; opening: auf+machen macht aufgemacht = open
        opening: zu+machen macht zugemacht = close .65 | shut/shut/shut/shutting .35
        device: an+machen macht angemacht = turn~on .6 | switch~on .4
        device: aus+machen macht ausgemacht = turn~off .6 | switch~off .4
        thing,device: reparieren repariert repariert = repair .6 | fix .4
        clothing: an+ziehen zieht angezogen = put~on/put/put/putting
        clothing: aus+ziehen zieht ausgezogen = take~off/took/taken; clothing: waschen wäscht gewaschen = wash
        person: ab+holen holt abgeholt = pick~up .7 | collect .3
        person: an+rufen ruft angerufen = call .65 | phone .35; person: besuchen besucht besucht = visit
        person: kennen kennt gekannt = know/knew/known; person,animal: lieben liebt geliebt = love
        person,animal,food,drink,text,place: mögen mag gemocht = like
        thing,device,person: brauchen braucht gebraucht = need; person: fragen fragt gefragt = ask
        person: ein+laden lädt eingeladen = invite
        person: treffen trifft getroffen = meet/met .7 | run_into/ran/run/running .3
        animal,place,thing,person: malen malt gemalt = paint .6 | draw/drew/drawn .4
        thing,clothing,text: verlieren verliert verloren = lose/lost
        thing,clothing,text: vergessen vergisst vergessen = forget/forgot/forgotten/forgetting
        thing,device: benutzen benutzt benutzt = use
        thing,drink,food: holen holt geholt = get/got/got/getting .6 | fetch .4
        person,animal: beobachten beobachtet beobachtet = watch .6 | observe .4
        room: auf+räumen räumt aufgeräumt = tidy~up .6 | clean~up .4
        thing,device: weg+werfen wirft weggeworfen = throw~away/threw/thrown""",
    "ditransitive": """
        thing,text,food,drink: geben gibt gegeben = give/gave/given
        thing,text,clothing,device: zeigen zeigt gezeigt = show/showed/shown
        thing,text: schicken schickt geschickt = send/sent
        thing,food,drink,clothing: bringen bringt gebracht = bring/brought
        thing,text,device: leihen leiht geliehen = lend/lent; text: vor+lesen liest vorgelesen = read/read
        thing,clothing,device: schenken schenkt geschenkt = give/gave/given
        thing,device: versprechen verspricht versprochen = promise""",
    "prepositional": """
        person,animal auf acc: warten wartet gewartet = wait_for
        person,place,text an acc: denken denkt gedacht = think_of/thought .6 | think_about/thought .4
        person mit dat: sprechen spricht gesprochen = talk_to .65 | speak_with/spoke/spoken .35
        animal,place,person von dat: träumen träumt geträumt = dream_of .6 | dream_about .4
        person,text über acc: lachen lacht gelacht = laugh_at .6 | laugh_about .4
        animal,thing mit dat: spielen spielt gespielt = play_with
        thing,text nach dat: fragen fragt gefragt = ask_about .6 | ask_for .4""",
    "dative": """
        person dat: helfen hilft geholfen = help; person dat: danken dankt gedankt = thank
        person,animal dat: folgen folgt ist gefolgt = follow; person dat: zu+hören hört zugehört = listen_to
        person dat: antworten antwortet geantwortet = answer .65 | reply_to .35""",
    "motion": """
        gehen geht ist gegangen = go/went/gone .65 | walk .35
        fahren fährt ist gefahren = drive/drove/driven .6 | go/went/gone .4
        laufen läuft ist gelaufen = run/ran/run/running .65 | walk .35; reisen reist ist gereist = travel
        zurück+kommen kommt ist zurückgekommen = come_back/came/come .6 | return .4""",
    "location": """
        wohnen wohnt gewohnt = live; sitzen sitzt gesessen = sit/sat/sat/sitting; stehen steht gestanden = stand/stood
        bleiben bleibt ist geblieben = stay .65 | remain .35""",
    "clausal": """
        glauben glaubt geglaubt = believe .6 | think/thought .4; sagen sagt gesagt = say/said
        wissen weiß gewusst = know/knew/known; hoffen hofft gehofft = hope; denken denkt gedacht = think/thought""",
}
STATIVE = "kennen lieben mögen brauchen glauben wissen vergessen wohnen denken hoffen"  # no progressive

# ich/er form, plural form = asserted || negated
MODALS = """
        kann können = can .7 | be able to .3 || can .75 | be able to .25
        muss müssen = must .6 | have to .4 || have to .7 | need .3
        will wollen = want to || want to
        soll sollen = should .65 | be supposed to .35 || should
        darf dürfen = may .6 | be allowed to .4 || must .6 | be allowed to .4
        möchte möchten = would like to .65 | want to .35 || want to .6 | would like to .4"""

# the key says which tenses they go with
TIMES = {
    "past": """
        gestern = yesterday; gestern Abend = last night .6 | yesterday evening .4; letzte Woche = last week
        letztes Jahr = last year; vor {n} Tagen = {n} days ago; vor {n} Jahren = {n} years ago
        vor Kurzem = recently .6 | not long ago .4""",
    "future": """
        morgen = tomorrow; morgen früh = tomorrow morning; bald = soon .7 | shortly .3; nächste Woche = next week
        in {n} Tagen = in {n} days""",
    "now": """
        jetzt = now; im Moment = at the moment .65 | right now .35""",
    "habit": """
        jeden Tag = every day .7 | each day .3; jeden Morgen = every morning .7 | each morning .3
        im Sommer = in summer .6 | in the summer .4; im Winter = in winter .6 | in the winter .4
        am Wochenende = on the weekend .6 | at the weekend .4""",
    "free": """
        heute = today; am Abend = in the evening; am Montag = on Monday; am Freitag = on Friday
        am Sonntag = on Sunday; um {n} Uhr = at {n} o'clock .7 | at {n} .3
        nach dem Essen = after the meal .6 | after dinner .4""",
}

# preposition case
PREPOSITIONS = {
    "where": """
        in dat = in .75 | inside .25; vor dat = in front of .65 | outside .35; hinter dat = behind
        neben dat = next to .6 | beside .4; bei dat = near .6 | by .4""",
    "whereto": """
        in acc = to .6 | into .4; zu dat = to; durch acc = through""",
    "with": """
        mit dat = with; für acc = for; ohne acc = without""",
}
MELTED = """
        in dem = im; in das = ins; zu dem = zum; zu der = zur; an dem = am; an das = ans; bei dem = beim
        von dem = vom"""

OTHERS = {
    "because": """
        weil = because .65 | since .2 | as .15; wenn = when .6 | if .4
        obwohl = although .55 | even though .3 | though .15
        während = while .7 | as .3; bevor = before""",
    "and": """
        und = and; aber = but .75 | yet .25; denn = because .6 | for .25 | as .15; oder = or""",
    "degree": """
        sehr = very .7 | really .3; ziemlich = quite .5 | rather .3 | pretty .2
        besonders = especially .6 | particularly .4""",
    "often": """
        oft = often .7 | frequently .3; immer = always; manchmal = sometimes .7 | occasionally .3
        selten = rarely .6 | seldom .4; nie = never""",
    "city": """
        Berlin = Berlin; Hamburg = Hamburg; München = Munich; Köln = Cologne; Wien = Vienna; Zürich = Zurich; Rom = Rome
        Paris = Paris; Dresden = Dresden; Nürnberg = Nuremberg""",
    "number": """
        zwei = two; drei = three; vier = four; fünf = five; sechs = six; sieben = seven; acht = eight; neun = nine
        zehn = ten; elf = eleven; zwölf = twelve""",
}
NAMES = {
    "he": "Peter Thomas Martin Paul Lukas Felix Karl David Jonas Max",
    "she": "Anna Maria Julia Laura Sofia Lena Clara Emma Nina Eva",
}
