"""The subject of a picture from its file name in Debian's openclipart: "big_truck_01" -> "big truck".

File names are a subject, the artist's name and a number, cut to about 25 characters. Removed are artists, numbers and
words for the style of drawing; Italian and French subjects are translated. A name that is neither English nor in the
table of translations keeps words that WordNet does not know, and clipart.py leaves its picture out.
"""

from __future__ import annotations

import re

# Folders (regular expressions of paths under png/) with pictures of things; the others hold signs, flags, icons, cards.
FOLDERS = "|".join("""
    animals(/.*)? buildings(/.*)? computer/(hardware|connectors) containers education(/books)? electronics(/.*)?
    food(/.*)? geography/astronomy office(/telephone)? people(/(clothing.*|bodypart))? plants(/.*)?
    recreation(/(art|games|games/dice|holiday.*|music|music/CD_Player|party|sports|toys))? science(/.*)?
    tools(/.*)? transportation(/(boating|vehicles.*))? unsorted
    """.split())
# Files that hold a road sign, or the words "Linked image not found", among the drawings of things.
SIGNS = re.compile(r"transportation/.*(Motorway_on|_lane|_opposite|buses_and_bikes|cattle|crosswind|cycles|drawbridge"
                   r"|/horse|trams?_only|/tram|tunnel|_length|_sign|parking|bus_symbol|boating_rules|sailing_)"
                   r"|.*(stylized_yoga|bullet_hole|telephone_(lutte|sauvetage)|simbol|_sign_)")

# First words of artists' names, also cut short; the rest of the file name is dropped from there.
ARTISTS = frozenset("""
    abiclipa abiclipar aiello aj alad alejandro alex ali amos andre andrea andremarcel andreas andrew angelo anonymous
    anthony anton as aubanel auban ben benj benji brad bram brice bucu celso charles chaspo chris christian christoph
    christophe clemente costea czara dan daniel danny darek dave davek davide denco dennis didier dietr dirk donna drawn
    dudziak durex einar enrique erich erik ernesto etienne fco felipe francesco frederic frouke fudriot gabriel
    gabrielle ganson ganso gary ger gera geral gerald geraint gerard ghuul gino glenn gmv goneri graig guillaume hans
    hash ingo israel jaim jaime jakob jame james jamin jan janet jarno jasper jean jeff jerome jim jo joel joerg
    joeseph john jon jona jonadab jonathan jordan jorkon josu juliane jurgen jure karl kessels kevin kilian kilfige
    konstantin kurt lauris leif leigh linda lion loic lorenzo lumen luca magnus marcelo mariusz mark martin massimo
    mateya matt matthew mauro maya md merzok michael mike mikhail mimooh mirjam mirko mitchell mo mopierre muji nae nath
    natha nathan nicola nicolas nicu niels nurbl nurbldoff olivier omar orbu orlan orlando patricia paul peterm petr
    petri petter philippe piche ralf raphael rgolan rikva rollandin romus ron ruairi ruud ryan saku santiago sek sergio
    seth shandy snuatautisticido stefan steffen stuart sup susan tanguy tess teudimundo teudimu thom tobias toh tom
    ulipha uliphant utrescu valessio van virgin vladimir william www xavier yemu yogesh yves
    """.split())
STYLE = frozenset("""
    a an the another my abstract alt b bw bn w black-and-white cartoon color colour coloured contour clothing cool
    crazy drawing etiquette fancy form frontale funny gnome hand-drawn icon illustration illustrated lowtec nice nuovo
    outline profile revisited shaded silhouet silhouette simpl simple simplified sketch slate stylised stylized style
    svg symbol symbolic v v0 yet with_strai by
    """.split())

def _table(text: str) -> dict[str, str]:
    """A dict written as "key=value; key=value", with line breaks anywhere."""
    return dict(entry.split("=") for entry in " ".join(text.split()).split("; "))


# Italian and French first words -> the subject.
TRANSLATED = _table("""
    abeille=bee; acquila=eagle; aquila=eagle; aglio=garlic; albero=tree; ambulans=ambulance; ambulanza=ambulance;
    anatra=duck; antilope=antelope; ape=bee; arbre=tree; autos=cars; bicicletta=bicycle; biberon=baby bottle;
    binocolo=binoculars; borsa=bag; borsetta=handbag; bussola=compass; calamita=magnet; calcolatrice=calculator;
    calzettoni=socks; camicia=shirt; cammello=camel; candela=candle; canguro=kangaroo; casa=house;
    cavalletta=grasshopper; cavallo=horse; cestino=basket; cesto=basket; chiave=key; cigni=swans; cigno=swan;
    cinepresa=movie camera; clessidra=hourglass; coccinella=ladybug; coccinelle=ladybug; coccinellona=ladybug;
    colombo=pigeon; coniglio=rabbit; cornetto=croissant; couronne=crown; cronometro=stopwatch; dente=tooth;
    dino=dinosaur; dinosauri=dinosaurs; dinosauro=dinosaur; elefante=elephant; elefantone=elephant;
    erlenmeyer=flask; fabbrica=factory; farfalla=butterfly; fattoria=farm; fiore=flower; flamand=flamingo;
    foglie=leaves; formichina=ant; formicona=ant; gabbiano=seagull; gallo=rooster; gateau=cake; gatto=cat;
    gattina=cat; gauffre=waffle; gelato=ice cream; glace=ice cream; gufo=owl; insetto=insect; lampada=lamp;
    leone=lion; lettera=letter; libellula=dragonfly; libellule=dragonfly; lucchetto=padlock; lucertola=lizard;
    lucertolona=lizard; lucertolone=lizard; lumaca=snail; mante=mantis; mantide=mantis; mattone=brick; mazzo=bouquet
    of flowers; microscopio=microscope; moschito=mosquito; motosega=chainsaw; mucca=cow; olifant=elephant;
    orso=bear; ours=bear; palloncini=balloons; pallone=hot-air balloon; pannocchia=corn cob; papera=duck;
    pasteque=watermelon; pecora=sheep; pecorella=sheep; peperoncino=chili pepper; pera=pear; pesca=peach;
    pescetto=fish; pinguino=penguin; pinzatrice=stapler; pollo=chicken; poltrona=armchair; pomodori=tomatoes;
    porcinet=pig; principessa=princess; provetta=test tube; provette=test tubes; punaisa=insect;
    puntine=thumbtacks; ragazza=girl; ragazzo=boy; ragnetto=spider; ragno=spider; ramarro=lizard; rana=frog;
    ravanello=radish; rosa=rose; ruota=cog; salvagente=life buoy; scala=ladder; scatolone=box; secchio=bucket;
    sedia=chair; sega=saw; serratura=lock; siringa=syringe; spaventapasseri=scarecrow; stambecco=ibex;
    stampante=printer; stetoscopio=stethoscope; stormo=birds; struzzo=ostrich; tacchino=turkey; tavolo=table;
    tavolozza=palette; tazza=cup; telecamera=video camera; telefono=telephone; televisore=television; tenda=tent;
    tigre=tiger; topo=mouse; toro=bull; toros=bull; torta=cake; tramezzino=sandwich; trattore=tractor; uccello=bird;
    vacca=cow; valigie=suitcases; viti=screws; zaino=backpack; zanzara=mosquito; zucca=pumpkin; bottiglia=wine
    bottle; ferro=iron; siringa=syringe; kubek=mug; zielony=mug; sapin=fir tree; prugna=plum; piramide=pyramid;
    cassetta=cassette; igloo=igloo; grattacieli=skyscrapers; vestito=dress; quattro=butterflies; betoniera=cement
    mixer; guanti=gloves
    """)
# Subjects written in another order or with a mistake, after cleaning.
MENDED = _table("""
    pie apple=apple pie; pie cherry=cherry pie; pie pumpkin=pumpkin pie; pizza cheese=cheese pizza; pizza
    slice=pizza; pizza pepperoni=pepperoni pizza; pizza rectangular=pizza; cone=ice cream cone; cone soft=ice cream
    cone; cone soft chocolate=ice cream cone; cone soft vanilla=ice cream cone; baloon=balloon; farmer
    onelette=omelette; cacuts=cactus; basebalm=baseball; soccer ballon=soccer ball; handphone=mobile phone;
    magnifing glass=magnifying glass; mag=magnifying glass; magnificator=magnifying glass;
    stappler=stapler; vavuum cleaner=vacuum cleaner; knot sqaure=square knot; home=house; pinkhome=pink house;
    redcar=red car; sportcar=sports car; palmtree=palm tree; teddybear=teddy bear; volleball net=volleyball net;
    lightbulb=light bulb; wooden mallot=wooden mallet; sun flower=sunflower; grass hopper=grasshopper;
    bluewhale=blue whale; heart ballons=heart balloons; lightbulb brightlit=light bulb; lightbulb lit=light bulb;
    lightbulb notlit=light bulb; lightbulb erichs=light bulb; rubiks cube random=rubiks cube; rondelle orange=orange
    slice; apple bitten=bitten apple; moon crescent=crescent moon; moon full=full moon; moon half=half moon; balloon
    black=black balloon; balloon blue=blue balloon; balloon green=green balloon; jonathons duck=duck; balloon
    orange=orange balloon; balloon white=white balloon; balloon yellow=yellow balloon; pin blue=blue pin; balloon
    purple=purple balloon; balloon red=red balloon; pin green=green pin; pin yellow=yellow pin; pin red=red pin;
    lemon half=half lemon; lemon whole=whole lemon; lime half=half lime; lime whole=whole lime; lens lente=lens;
    joystick black red=joystick; joystick beige gray=joystick; cassette video=video cassette; frying pan
    padella=frying pan; frying pan padella in=frying pan; rubik=rubik cube; beachball=beach ball; perogies=pierogi;
    blowling ball=bowling ball; volley ball=volleyball; africandrum=african drum; leafrake=leaf rake;
    hedgeshear=hedge shear; tophat=top hat; meatgrinder=meat grinder; envelop=envelope; floppy=floppy disk;
    glass=drinking glass; compact disc=cd; fatherchristmas=santa claus; paperbag=paper bag; gift=present;
    funnyflower=flower; lotas=lotus; cuppa=cup; dino=dinosaur; pop can=can; laserprinter=laser printer; lcd=lcd
    monitor; tower=tower computer
    """)


def subject(stem: str) -> str:
    """The clean subject of a file name without its folder and extension, lower case; "" if nothing is left."""
    text = re.sub(r"[^a-z]+", " ", re.sub(r"[_\W]s[_\W]", "s ", re.sub(r"\b\d+rpm", "", stem.lower()))).split()
    if not text:
        return ""
    if text[0] in TRANSLATED:
        return TRANSLATED[text[0]]
    kept: list[str] = []
    for word in text:
        if kept and (word in ARTISTS or _is_cut_architect(word)):
            break
        if word not in STYLE and len(word) > 1:
            kept.append(word)
    name = " ".join(kept)
    return MENDED.get(name, name)


def _is_cut_architect(word: str) -> bool:
    """Whether this is the beginning of "architetto" or the whole word (Architetto Francesco Rollandin)."""
    return len(word) > 1 and ("architetto".startswith(word) or word == "rolla")
